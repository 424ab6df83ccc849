"""Loading items of a step onto devices: all processes succeed with checked numbers, or all fail."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from jaxllm.distributed.gather import gather_texts
from jaxllm.errors import CheckpointError

from .digests import digest_arrays
from .orbax_layout import DIFFERS, read_step, stored_digest
from .stored_array import StoredArray

THREADS = 4  # arrays that are read at a time


def digest_items(items: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Returns the digests of the arrays of each item, a pytree, by their dotted names.

    If the arrays span processes, all of them must call this at the same time.
    """
    return {item: digest_arrays(_named_leaves(tree)) for item, tree in items.items()}


def restore(step: Path, targets: Mapping[str, Any]) -> dict[str, Any]:
    """Loads items of a step and checks the digests that were written with them.

    All processes of a multi-host run must call this.

    Args:
        step: the folder of the step.
        targets: for each item a pytree of `jax.ShapeDtypeStruct` with shardings. The dtypes must
            be those stored: digests are of the stored bits.

    Raises:
        CheckpointError: a process cannot read its part, or an array is not what was written.
    """
    about, problem = read_step(step).about, ""
    items: dict[str, Any] = {}
    try:
        items = {item: _load(step, item, tree) for item, tree in targets.items()}
    except CheckpointError as error:
        problem = str(error)
    if problems := sorted(set(filter(None, gather_texts(problem)))):
        raise CheckpointError(problems, step)
    wrong = [
        f"{item} {name} is damaged: {DIFFERS}"
        for item, digests in digest_items(items).items()
        for name, digest in digests.items()
        if stored_digest(about, item, name) not in (None, digest)
    ]
    if wrong:
        raise CheckpointError(wrong, step)
    return items


def _load(step: Path, item: str, targets: Any) -> Any:
    """Loads one item as Orbax stored it; unlike Orbax, without waiting for other processes."""

    def load(name: str, target: jax.ShapeDtypeStruct) -> Array:
        stored = StoredArray(step, item, name, None)
        if (stored.dtype, stored.shape) != (target.dtype, target.shape):
            raise CheckpointError(
                f"{item} {name} is {stored.dtype}{list(stored.shape)}, "
                f"not {target.dtype}{list(target.shape)}"
            )
        read = lru_cache(None)(stored.read)  # several devices may need the same part

        def part(index: Any) -> np.ndarray:
            ranges = zip(index, target.shape, strict=True)
            return read(tuple(along.indices(size)[:2] for along, size in ranges))

        return jax.make_array_from_callback(target.shape, target.sharding, part)

    named, structure = _named_leaves(targets), jax.tree.structure(targets)
    with ThreadPoolExecutor(THREADS) as pool:
        return jax.tree.unflatten(structure, pool.map(load, named, named.values()))


def _named_leaves(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}
