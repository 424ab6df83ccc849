"""Checkpoint folders: identifies the family, and locates the tensors from the headers."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxllm.checkpoint_origin import describe_adapter
from jaxllm.config import EncoderDecoderConfig
from jaxllm.errors import MissingCheckpointError, did_you_mean
from jaxllm.interop.families import FAMILIES, Family, variant_of
from jaxllm.interop.families.common.naming.heads import architecture_without_head
from jaxllm.interop.families.gguf.translate import SUFFIX, is_gguf, read_gguf
from jaxllm.interop.formats import tensor_files
from jaxllm.interop.formats.pytorch.wrapped_names import strip_wrappers, without_prefix
from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor
from jaxllm.interop.formats.table import tensor_formats
from jaxllm.tokenization.special_tokens import GENERATION_CONFIG, MODEL_CONFIG
from jaxllm.untrusted.json_objects import parse_json
from jaxllm.untrusted.regular_files import is_named, read_bytes
from jaxllm.untrusted.substitutes import check_is_content

Tensors = Mapping[str, StoredTensor]

HF = "hf"  # the format of the families that have variants
SENTENCE_TRANSFORMERS = "modules.json"
SUPPORTED = "docs/families.md lists what is supported"
OWN_RULES = "for a PyTorch model of your own, give rules (docs/rules.md)"
MERGE = "merge it into its base to have what it learned: `jaxllm convert ADAPTER OUT --merge`"
MOST_NAMES = 8  # how many files of a folder a message lists

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder whose headers, but no tensors, have been read.

    Attributes:
        path: the folder, or the GGUF file.
        family: the family of the model.
        config: the fields of the family's config file, as the user allows them.
        tensors: the places of the tensors, by name.
        strict: whether what is not understood is an error, even if it may not matter.
        allowed: a line for each field that is read otherwise than the file says.
        problems: why tensors in quantized storage cannot be decoded.
    """

    path: Path
    family: Family
    config: dict[str, Any]
    tensors: Mapping[str, StoredTensor]
    strict: bool = True
    allowed: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def config_path(self) -> Path:
        """The file that holds the config: one in the folder, or the GGUF file itself."""
        return self.path if is_gguf(self.path) else self.path / self.family.config_file


def open_known_checkpoint(path: Path) -> Checkpoint:
    """Reads the config and the headers of a folder, or of a GGUF file.

    Raises:
        CheckpointError: it is not a checkpoint of a known family, or is damaged.
    """
    if is_gguf(path):
        return Checkpoint(path, *read_gguf(path))
    check_is_folder(path)
    family, config = read_family(path)
    rows = [row for row in tensor_formats() if row.family_format == family.format]
    read = next((row.read for row in rows if row.holds(path)), None)
    if read is None and family.format == HF and tensor_files.find_model_file(path) is not None:
        read = _read_model_file
    if read is not None:
        if (adapter := describe_adapter(path)) is not None:
            logger.warning("%s: %s is not applied; %s", path, adapter, MERGE)
        plain = strip_wrappers(_read_headers(path, read))
        family = variant_of(family, plain)
        return Checkpoint(path, family, config, without_prefix(plain, family.trainer_prefix(plain)))
    expected = " or ".join(pattern for row in rows for pattern in row.files)
    raise CheckpointError(
        f"{path} has the config of a {family.name} checkpoint but no weights: "
        f"expected {expected}; the folder has {file_names(path)}"
    )


def _read_model_file(path: Path) -> Tensors:
    """Locates the tensors of the only file in a folder that can be the model's."""
    file = tensor_files.find_model_file(path)
    assert file is not None, "checked by the caller"
    return tensor_files.read_only_file(file)


def open_tensors(path: Path) -> Tensors:
    """Locates the tensors of any folder or file, by name, also without a config.

    Of a folder it reads the files of the first known format that the folder has, else every file
    with the suffix of a tensor file.

    Raises:
        CheckpointError: the folder has no tensors, or a file is damaged.
    """
    if path.is_file():
        return _read_headers(path, tensor_files.read_only_file)
    check_is_folder(path)
    read = next((row.read for row in tensor_formats() if row.holds(path)), None)
    return _read_headers(path, read or tensor_files.read_every_file)


def check_is_folder(path: Path) -> None:
    """Raises MissingCheckpointError if there is no folder at `path`."""
    if path.is_dir():
        return
    if path.exists():
        raise MissingCheckpointError(
            f"{path} is not a folder: give the folder that contains the file"
        )
    raise MissingCheckpointError(f"{path} is not a folder" + _near_path(path))


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Raises:
        CheckpointError: the file has no valid JSON object, or a key occurs twice.
    """
    try:
        check_is_content(path)
        return parse_json(read_bytes(path))
    except CheckpointError as error:
        raise CheckpointError(error.within(path)) from None


def read_family(path: Path) -> tuple[Family, dict[str, Any]]:
    """Returns the family whose config file is in the folder, and the fields of that file.

    Raises:
        CheckpointError: there is no such file. The message says what is missing and what to do.
    """
    if is_gguf(path):
        return read_gguf(path)[:2]
    for family in FAMILIES:
        config_file = path / family.config_file
        if not config_file.is_file():
            continue
        config = read_json(config_file)
        if config.get("model_type") == family.model_type:
            return family, config
    if (path / MODEL_CONFIG).is_file():
        given = read_json(path / MODEL_CONFIG).get("model_type")
        raise CheckpointError(unknown_model_type(path / MODEL_CONFIG, given))
    raise CheckpointError(_no_config(path))


def has_start_token(family: Family) -> bool:
    """Whether `generation_config.json` may name the start token of the family's targets."""
    return family.format == HF and family.config_class is EncoderDecoderConfig


def with_facts_beside(family: Family, config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Adds what other files of a Hugging Face folder say about the model's function.

    `modules.json` says that Sentence Transformers embeds texts with the hidden states, whatever
    architecture the config names. For `generation_config.json`, see `with_start_token`.
    """
    if family.format == HF and (path / SENTENCE_TRANSFORMERS).is_file():
        given = config.get("architectures") or [""]
        config = {**config, "architectures": [architecture_without_head(str(given[0]) or "Model")]}
    file = path / GENERATION_CONFIG
    generation = read_json(file) if is_named(file) and has_start_token(family) else {}
    return with_start_token(family, config, generation)


def with_start_token(
    family: Family, config: dict[str, Any], generation: Mapping[str, Any]
) -> dict[str, Any]:
    """Takes the start token of targets from the generation config, if that names one.

    It precedes the config's own: transformers keeps settings of generation there.
    """
    name = "decoder_start_token_id"
    given = generation.get(name) if has_start_token(family) else None
    return config if given is None else {**config, name: given}


def file_names(path: Path) -> str:
    """Lists a folder's files for a message, at most the first `MOST_NAMES`."""
    names = sorted(file.name for file in path.iterdir())
    more = [f"{len(names) - MOST_NAMES} more"] if len(names) > MOST_NAMES else []
    return ", ".join([*names[:MOST_NAMES], *more]) or "nothing"


def unknown_model_type(place: object, given: object) -> str:
    """Returns the message for a config without a `model_type`, or with one of no family.

    Args:
        place: the config, such as the path of its file.
        given: its `model_type`, or None.
    """
    known = [family.model_type for family in FAMILIES if family.config_file == MODEL_CONFIG]
    if given is None:
        return (
            f"{place} has no model_type, so the kind of model is unknown; {SUPPORTED}; {OWN_RULES}"
        )
    meant = did_you_mean(given, known) if isinstance(given, str) else ""
    return f"{place}: model_type {given!r} is not supported{meant}; {SUPPORTED}; {OWN_RULES}"


def _no_config(path: Path) -> str:
    """Returns the message for a folder without any family's config file."""
    if (adapter := describe_adapter(path)) is not None:
        return f"{path} holds {adapter}, but no model; {MERGE}"
    if (file := next(iter(sorted(path.glob(f"*{SUFFIX}"))), None)) is not None:
        return f"{path} has no {MODEL_CONFIG}, but GGUF files: give the path of one, such as {file}"
    others = sorted({family.config_file for family in FAMILIES} - {MODEL_CONFIG})
    missing = f"{MODEL_CONFIG} is missing ({' or '.join(others)} would do)"
    inside = next(iter(sorted(path.glob(f"*/{MODEL_CONFIG}"))), None)
    meant = f"; did you mean {inside.parent}?" if inside is not None else ""
    return (
        f"{path} is not a checkpoint: {missing}{meant}; the folder has {file_names(path)}; "
        f"{OWN_RULES}"
    )


def _near_path(path: Path) -> str:
    """Returns a clause that suggests the folder beside `path` with the most similar name, or ""."""
    beside: Iterable[Path] = path.parent.iterdir() if path.parent.is_dir() else ()
    return did_you_mean(path.name, [entry.name for entry in beside if entry.is_dir()])


def _read_headers(path: Path, read: Callable[[Path], Tensors]) -> Tensors:
    try:
        return read(path)
    except OSError as error:  # such as a folder in place of a file, a dangling link, no permission
        raise CheckpointError(f"{error.filename or path}: {error.strerror}") from None
