"""Translates GGUF files: the family, the config and the tensors as Hugging Face would have them."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.config import make_config
from jaxllm.errors import did_you_mean
from jaxllm.interop.families import FAMILIES, Family, Fields, variant_of
from jaxllm.interop.families.common.fields import Json
from jaxllm.interop.formats.gguf.header import Header, read_header
from jaxllm.interop.formats.gguf.quantized_tensor import QuantizedTensor, list_tensors
from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.tokenization.gguf_companions import SUFFIX

from .architecture import Architecture
from .architectures import ARCHITECTURES, find_architecture
from .rope_factors import read_scaling

ARCHITECTURE = "general.architecture"
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
END_OF_TURN = "eot_token_id"
# Names in `config.json` by names in the file.
SPECIAL = {
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "padding_token_id": "pad_token_id",
}
INSTEAD = "load the checkpoint that this file was converted from instead"
VALUE_LENGTH, ROTATED = "attention.value_length", "rope.dimension_count"
# Fields that others are computed from.
SIZES = (
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", VALUE_LENGTH),
    *("block_count", "embedding_length", "expert_count", ROTATED),
)


def is_gguf(path: Path) -> bool:
    """Whether a path is that of a GGUF file, by its name."""
    return path.suffix == SUFFIX and not path.is_dir()


def read_gguf(path: Path) -> tuple[Family, Json, dict[str, QuantizedTensor]]:
    """Reads the header of a GGUF file, and tensors that are part of the config.

    Returns:
        The family, the fields of its `config.json`, and the tensors by Hugging Face's names.

    Raises:
        CheckpointError: the file is damaged, of an unknown architecture, or has fields or tensors
            that are not understood. Lists every problem.
        MissingPackageError: the package `gguf` is not installed.
    """
    header = read_header(path)
    tensors = list_tensors(path, header)
    name = header.fields.get(ARCHITECTURE)
    architecture = find_architecture(name, tensors)
    if architecture is None:
        known = ", ".join(ARCHITECTURES)
        meant = did_you_mean(str(name), [*ARCHITECTURES])
        raise CheckpointError(f"{path}: {ARCHITECTURE} {name!r} is not one of {known}{meant}")
    given = {
        key.removeprefix(f"{name}."): _plain(value)
        for key, value in header.fields.items()
        if key.startswith(f"{name}.")
    }
    wrong = [size for size in SIZES if not _is_size(given.get(size, 1))]
    problems = [f"field {size}={given.pop(size)!r} is not a size" for size in wrong]
    config, renamed = _translate(architecture, given, tensors, problems)
    config |= _special_tokens(header)
    if problems:
        raise CheckpointError([*problems, INSTEAD], path)
    family = next(
        family
        for family in FAMILIES
        if family.format == "hf" and family.model_type == architecture.model_type
    )
    family = variant_of(family, renamed)
    return family, _completed(family, config, renamed), renamed


def _completed(family: Family, config: Json, tensors: dict[str, QuantizedTensor]) -> Json:
    """Adds the fields of a `config.json` that a GGUF file lacks, such as `architectures`."""
    try:
        values, _ = family.read_config(Fields(config), tensors)
        return {**family.write_config(make_config(values), {}), **config}
    except ValueError:  # whoever reads the config reports it, with all other problems
        return config


def _translate(
    architecture: Architecture,
    given: Json,
    tensors: dict[str, QuantizedTensor],
    problems: list[str],
) -> tuple[Json, dict[str, QuantizedTensor]]:
    """Returns the fields of `config.json` and the renamed tensors; collects problems."""
    value_length, rotated = given.pop(VALUE_LENGTH, None), given.pop(ROTATED, None)
    head_dim = _head_dim(given)
    config = architecture.read_fields(given)
    config["model_type"] = architecture.model_type
    if EMBEDDING in tensors:
        config["vocab_size"] = tensors[EMBEDDING].shape[0]
    config["tie_word_embeddings"] = HEAD not in tensors
    if value_length not in (None, head_dim):
        problems.append(f"{VALUE_LENGTH}={value_length} differs from the {head_dim} of keys")
    if rotated not in (None, head_dim) and head_dim:
        config["partial_rotary_factor"] = rotated / head_dim
    config |= read_scaling(given, tensors, config, problems)
    problems += [f"field {name}={value!r} is not understood" for name, value in given.items()]
    return config, architecture.rename(tensors, config, problems)


def _head_dim(given: Json) -> int:
    width, heads = given.get("embedding_length", 0), given.get("attention.head_count") or 1
    return int(given.get("attention.key_length") or width // heads)


def _special_tokens(header: Header) -> Json:
    """Returns the ids of special tokens; the end of a turn is an end of texts as well."""
    found = {
        ours: token
        for theirs, ours in SPECIAL.items()
        if _is_size(token := header.fields.get(f"tokenizer.ggml.{theirs}"))
    }
    turn = header.fields.get(f"tokenizer.ggml.{END_OF_TURN}")
    if _is_size(turn) and turn != found.get("eos_token_id", turn):
        return {**found, "eos_token_id": [found["eos_token_id"], turn]}
    return found


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value
