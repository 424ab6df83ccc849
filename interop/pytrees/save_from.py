"""Saves the leaves of any JAX pytree as a checkpoint, with the files of another one beside it."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np

from jaxllm.checkpoint_origin import CONFIGS, copy_files
from jaxllm.config import Dtype
from jaxllm.config.numerics import check_dtype
from jaxllm.hub import local_path
from jaxllm.interop.formats import safetensors_file, tensor_files
from jaxllm.interop.formats.byte_sizes import parse_size
from jaxllm.interop.formats.file_writer import CHUNK_BYTES
from jaxllm.interop.formats.lazy_tensor import TensorSource, from_jax, from_stored
from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor
from jaxllm.interop.loading.checkpoint_dir import read_json
from jaxllm.interop.loading.diagnostics import reason_to_ignore
from jaxllm.interop.rules.rule import Stacks
from jaxllm.interop.saving.export import export_tensors
from jaxllm.interop.saving.save import write_checkpoint, write_tensor_files
from jaxllm.numerics.narrowing import Zeroed
from jaxllm.sharding import spans_processes

from .fitting import fit_rules
from .leaves import NamedLeaves, is_abstract
from .load_into import read_tensors
from .tree_rules import TreeRules, read_tree_rules

Tensors = Mapping[str, StoredTensor]

logger = logging.getLogger(__name__)

DTYPE_FIELDS = ("dtype", "torch_dtype")  # of a config.json: what transformers loads weights as


@dataclass(frozen=True)
class LeafArrays:
    """The arrays of a tree, none of them read yet, and how its layers are stacked."""

    stacks: Stacks
    arrays: Mapping[str, TensorSource]


def save_from(
    tree: Any,
    path: str | Path,
    rules: Any,
    *,
    like: str | Path | None = None,
    dtype: Dtype | None = None,
    max_shard: int | str = "5GB",
) -> None:
    """Writes the leaves of any JAX pytree as a checkpoint: the inverse of `load_into`.

    The checkpoint appears under its name only when it is complete. Every process of a run on
    several hosts must call this; process 0 writes.

    Args:
        tree: the tree; only its arrays are stored.
        path: a folder that does not exist yet, or is empty.
        rules: those of `load_into`.
        like: a checkpoint, also at `hf://ORG/NAME`, whose config, tokenizer, ignored tensors and
            other files go along and whose type of file is used. The tensors must be those of `like`
            in names and shapes. By default only `model.safetensors` is written, in shards if it is
            large.
        dtype: dtype of the stored floats; by default that of each leaf, bit for bit. Logs a warning
            on numbers that become zero in it.
        max_shard: the most bytes of tensors in a safetensors shard, or a text like "5GB".

    Raises:
        CheckpointError: the folder is not empty, a leaf has no rule or no numbers, or the tensors
            are not those of `like`. Lists every problem.
        UserError: an argument is not valid.

    Example:
        save_from(model, "trained", rules, like="Llama-3.2-1B")
    """
    check_dtype(dtype)
    leaves, shard = NamedLeaves.of(tree), parse_size(max_shard)
    other = None if like is None else local_path(like)
    stored = {} if other is None else read_tensors(other)
    zeroed = None if dtype is None else Zeroed(np.dtype(dtype))
    tensors = plan_tensors(leaves, read_tree_rules(rules), stored, zeroed)
    if like is not None and (problems := _unlike(tensors, stored)):
        raise CheckpointError(problems, f"the tree does not give the tensors of {like}")
    files, index = tensor_files.lay_out(tensors, _file_of(stored), shard)
    folder = None if other is None else _folder(other)
    together = any(map(spans_processes, leaves.arrays.values()))
    write_checkpoint(
        Path(path).resolve(),
        partial(write_tensor_files, files, tensors, together),
        {**({} if folder is None else _configs(folder, tensors)), **index},
        [] if folder is None else [lambda to: copy_files(None, to, folder)],
        together=together,
    )
    if zeroed is not None and (warning := zeroed.describe()):
        logger.warning("%s", warning)


def plan_tensors(
    leaves: NamedLeaves, rules: TreeRules, stored: Tensors, zeroed: Zeroed | None = None
) -> dict[str, TensorSource]:
    """Returns the tensors to store, none of them read yet.

    Args:
        leaves: the leaves of the tree.
        rules: the rules.
        stored: the tensors of the checkpoint that this one is to be like; empty if there is none.
        zeroed: the dtype of the floats, and what counts the numbers that become zero in it.

    Raises:
        CheckpointError: a leaf has no rule or no numbers, or tied leaves differ.
    """
    fit = fit_rules(leaves, rules, {name: tensor.shape for name, tensor in stored.items()})
    arrays = {name: leaf for name, leaf in leaves.arrays.items() if not rules.keeps(name)}
    abstract = [name for name, leaf in arrays.items() if is_abstract(leaf)]
    problems = [*fit.problems, *(f"{name} is only a shape and a dtype" for name in abstract)]
    if problems:
        raise CheckpointError(problems, "cannot save this tree")
    sources = {name: _cast(from_jax(leaf), zeroed, name) for name, leaf in arrays.items()}
    tensors = dict(export_tensors(LeafArrays(leaves.stacks, sources), fit.table))
    if problems := _drop_copies(tensors, rules, stored):
        raise CheckpointError(problems, "cannot save this tree")
    ignored = (name for name in stored if reason_to_ignore(fit.table, name) is not None)
    return tensors | {name: from_stored(stored[name]) for name in ignored}


def _cast(source: TensorSource, zeroed: Zeroed | None, name: str) -> TensorSource:
    is_float = source.dtype.name in get_args(Dtype)
    return source if zeroed is None or not is_float else source.astype(zeroed.dtype, zeroed, name)


def _folder(like: Path) -> Path:
    return like if like.is_dir() else like.parent


def _file_of(stored: Tensors) -> str:
    """Returns the name of the file that holds these tensors, if it is one that can be written."""
    files = {tensor.path.name for tensor in stored.values()}
    name = files.pop() if len(files) == 1 else safetensors_file.SINGLE_NAME
    return name if tensor_files.is_writable(Path(name)) else safetensors_file.SINGLE_NAME


def _drop_copies(tensors: dict[str, TensorSource], rules: TreeRules, stored: Tensors) -> list[str]:
    """Leaves out tied tensors that the other checkpoint does not store; returns those that differ.

    Arrays that span processes are read by all of them, in the same order.
    """
    problems = []
    for copy in rules.ruled_copies:
        original = rules.tied[copy]
        if not _have_same_bits(tensors[copy], tensors[original]):
            problems.append(f"{copy} is tied to {original}, but their leaves differ: untie them")
        elif stored and copy not in stored:
            del tensors[copy]
    return problems


def _have_same_bits(one: TensorSource, other: TensorSource) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    pairs = zip(one.payload(CHUNK_BYTES), other.payload(CHUNK_BYTES), strict=True)
    return all(a == b for a, b in pairs)


def _unlike(tensors: Mapping[str, TensorSource], stored: Tensors) -> list[str]:
    """Returns how the tensors differ from those of the checkpoint whose config they would have."""
    return [
        *(f"{name} is not in the checkpoint" for name in tensors if name not in stored),
        *(f"{name} is only in the checkpoint" for name in stored if name not in tensors),
        *(
            f"{name} has shape {tensors[name].shape}, but {tensor.shape} in the checkpoint"
            for name, tensor in stored.items()
            if name in tensors and tensors[name].shape != tensor.shape
        ),
    ]


def _configs(folder: Path, tensors: Mapping[str, TensorSource]) -> dict[str, bytes]:
    """Returns the config files of a folder, with the dtype that is written now."""
    files = (folder / name for name in CONFIGS)
    return {file.name: _with_dtype(file, tensors) for file in files if file.is_file()}


def _with_dtype(file: Path, tensors: Mapping[str, TensorSource]) -> bytes:
    """Returns a config file, changed only if it says another dtype than the tensors have."""
    fields, dtypes = read_json(file), {tensor.dtype.name for tensor in tensors.values()}
    wrong = [name for name in DTYPE_FIELDS if fields.get(name) not in (None, *dtypes)]
    if not wrong or len(dtypes) > 1:
        return file.read_bytes()
    fields |= dict.fromkeys(wrong, *dtypes)
    return (json.dumps(fields, indent=2) + "\n").encode()
