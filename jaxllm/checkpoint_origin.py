"""The checkpoint a model was loaded from: its format, and its files that are not weights."""

import dataclasses
import logging
import shutil
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from .errors import UserError, on_one_line
from .tokenization.gguf_companions import companion_folder
from .tokenization.special_tokens import read_json

KEPT = "origin"  # the folder of a run or a native checkpoint that holds its origin's files
CARRIED = "carried.safetensors"  # in that folder: the checkpoint's tensors outside of the model
CONFIGS = ("config.json", "params.json")  # a folder with one of them is a checkpoint
ADAPTER = "adapter_config.json"
# Files to copy from a folder that is no checkpoint, which may hold anything.
TOKENIZER_FILES = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
    *("chat_template*", "generation_config.json", "*processor_config.json", "tekken.json"),
    *("*.tiktoken", "spiece.model", "sentencepiece*.model"),
)
# Every export writes its own, so these are neither copied nor listed as left out.
REPLACED = (
    *(*CONFIGS, CARRIED),
    *("model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model-?????-of-?????.bin", "pytorch_model.bin.index.json"),
    *("consolidated.[0-9]*.pth", "state_dict.pth"),
)
WEIGHTS = (
    *("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.distcp", "*.gguf", "*.ggml", "*.h5"),
    *("*.msgpack", "*.onnx", "*.onnx_data", "*.ot", "*.npz", "*.index.json"),
    *("*.ocdbt", "_CHECKPOINT_METADATA"),  # of Orbax, as in native checkpoints
)
# Other files that stay behind, and why.
LEFT_OUT = (
    ("adapter_*", "of a PEFT adapter, which is not applied"),
    ("trainer_state.json", "state of an earlier training"),
    *((pattern, "checksums of other weights") for pattern in ("*.chk", "*.md5", "*.sha256")),
)
MOST_BYTES = 100_000_000  # of a file that is copied; tokenizers are smaller

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """The checkpoint that a model was loaded from. Only `jaxllm.interop` reads these fields.

    A model that was trained from the start on a tokenizer comes from that: it has no family.
    """

    family: str
    config: str  # text of its config file, for the fields that do not affect the numbers
    layout: str  # how its tensors were split into files
    directory: str  # holds the tokenizer and generation files; "" if the model came from memory
    checkpoint: str = ""  # the folder that it was read from, also if `directory` is a copy
    carried: str = "[]"  # text of a list: tensors outside of the model that exports take along

    @property
    def folders(self) -> list[Path]:
        """The folder with the checkpoint's files that are not weights; none if it was in memory."""
        return [companion_folder(Path(self.directory))] if self.directory else []

    @property
    def readable_folders(self) -> list[Path]:
        """`folders`, or none if a GGUF file's tokenizer cannot be read; `copy_files` warns then."""
        try:
            return self.folders
        except UserError:  # of the tokenizer in a GGUF file
            return []


def copy_files(origin: Origin | None, destination: Path, *others: Path) -> None:
    """Copies the files of a model's origin that are not weights, such as its tokenizer.

    Logs a warning that lists what is left out and why, and one if the origin no longer exists or
    its tokenizer, in a GGUF file, cannot be read.

    Args:
        origin: the model's origin, if it has one.
        destination: an existing folder; nothing in it is replaced by a file of `origin`.
        others: further folders, whose files take precedence.
    """
    try:
        folders = [] if origin is None else origin.folders
        others = tuple(map(companion_folder, others))
    except UserError as error:  # of the tokenizer in a GGUF file
        logger.warning("%s; its tokenizer is not copied", error)
        return
    if any(not folder.is_dir() for folder in folders) and not any(map(has_tokenizer, others)):
        logger.warning(
            "%s, which the model came from, does not exist: its tokenizer and other files are not "
            "copied",
            folders[0],
        )
    for folder in dict.fromkeys([*folders, *others]):
        left_out, own = [], _first_part(destination.resolve(), folder.resolve())
        for name, reason in sort_files(folder):
            if Path(name).parts[0] == own:
                continue
            if reason is not None:
                left_out.append(f"{on_one_line(name)} ({reason})")
                continue
            (destination / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(folder / name, destination / name)
        if left_out:
            logger.warning("not copied from %s: %s", folder, ", ".join(left_out))


def _first_part(inside: Path, folder: Path) -> str | None:
    """Returns the name in `folder` that leads to `inside`; None if that is somewhere else."""
    return inside.relative_to(folder).parts[0] if folder in inside.parents else None


def copy_tokenizer(path: Path, destination: Path) -> None:
    """Copies the files of a tokenizer, which may be a folder, a GGUF file or a JSON file."""
    place = companion_folder(path)
    folder = place if place.is_dir() else place.parent
    for file in sorted(folder.iterdir()):
        if file.is_file() and _matches(file.name, TOKENIZER_FILES):
            shutil.copy2(file, destination / file.name)
    if place.is_file() and place.suffix == ".json":
        shutil.copy2(place, destination / "tokenizer.json")


def sort_files(folder: Path) -> Iterator[tuple[str, str | None]]:
    """Yields each file of a folder, relative to it, that an export does not replace.

    Of a folder that is no checkpoint, only tokenizer files are considered. Hidden files are not.

    Yields:
        The name, and why the file is left out; None if it is to be copied.
    """
    is_checkpoint = folder.name == KEPT or any((folder / name).is_file() for name in CONFIGS)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        name = path.name
        if name.startswith((".", "__")) or _matches(name, REPLACED):
            continue
        if not is_checkpoint and not _matches(name, TOKENIZER_FILES):
            continue
        if not path.is_dir():
            yield name, _why_left_out(path)
        elif any(_matches(file.name, WEIGHTS) for file in path.rglob("*")):
            yield f"{name}/", "a folder with other weights"
        else:
            files = sorted(file for file in path.rglob("*") if file.is_file())
            yield from ((str(f.relative_to(folder)), _why_left_out(f)) for f in files)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds files of a tokenizer."""
    return any(reason is None for _, reason in sort_files(folder))


def describe_adapter(folder: Path) -> str | None:
    """Returns what a folder says about a PEFT adapter in it, or None if there is none."""
    if not folder.is_dir():  # but a file that holds all
        return None
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    files = [name for name in names if _matches(name, (ADAPTER, "adapter_model.*"))]
    if not files:
        return None
    try:
        fields = read_json(folder / ADAPTER)
        of = on_one_line(f"{fields['peft_type']} of {fields['base_model_name_or_path']}")
    except (OSError, UserError, KeyError):
        of = "of a model that it does not name"
    return f"a PEFT adapter ({of}; {', '.join(files)})"


def _why_left_out(path: Path) -> str | None:
    for pattern, reason in LEFT_OUT:
        if fnmatchcase(path.name, pattern):
            return reason
    if _matches(path.name, WEIGHTS):
        return "other weights, or state of a training"
    if not path.is_file():
        return "not a file"
    if _is_weights(path):
        return "other weights, or state of a training"
    return f"larger than {MOST_BYTES // 10**6} MB" if path.stat().st_size > MOST_BYTES else None


def _is_weights(path: Path) -> bool:
    """Whether a file of any name begins as those of PyTorch (zip or pickle) or safetensors do."""
    with path.open("rb") as stream:
        start = stream.read(10)
    is_pickle = start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5")
    return is_pickle or start.startswith(b"PK\3\4") or start[8:] == b'{"'


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
