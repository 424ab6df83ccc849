"""Checks tensors that are stored more than once: tied weights, norms of model-parallel shards."""

import dataclasses
import logging
from typing import Any

import numpy as np

from jaxllm.config import Config, DecoderConfig, stacks_of
from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor

from .checkpoint_dir import HF, Checkpoint
from .name_folding import in_short
from .plan import Plan, make_plan
from .streaming.array_reads import ArrayReads
from .streaming.chunk_reader import Reader, chunks
from .streaming.stream import chunk_bytes

WIDE = "float64"
TIED = "tie_word_embeddings"

logger = logging.getLogger(__name__)


def make_checked_plan(checkpoint: Checkpoint, **options: Any) -> Plan:
    """Plans the loading of a checkpoint and checks that copies equal their originals bit for bit.

    A head that the config ties to the embedding but that differs from it is loaded as untied, with
    a warning, as transformers 5 does. Another warning names tensors outside of the model.

    Args:
        checkpoint: the checkpoint; only copies and their originals are read.
        options: those of `make_plan`.

    Raises:
        CheckpointError: see `make_plan`; or other copies differ. Lists all of them.
    """
    plan = make_plan(checkpoint, **options)
    try:
        check_copies(plan, checkpoint.path)
    except CheckpointError as error:
        if checkpoint.family.format != HF or not _is_tied(plan.config):
            raise
        try:
            plan = make_plan(_untied(checkpoint), **options)
            check_copies(plan, checkpoint.path)
        except CheckpointError:  # another copy than the head is what differs
            raise error from None
        logger.warning(
            "%s: %s=true in the config, but the head differs from the embedding: loaded as untied",
            *(checkpoint.path, TIED),
        )
    if plan.carried:
        logger.warning(
            "%s: not part of the model: %s; the way back takes them from there",
            *(checkpoint.path, in_short(plan.carried)),
        )
    return plan


def warn_of_wide(plan: Plan, path: object) -> None:
    """Logs a warning if the arrays of a plan are narrower than what is stored of them."""
    if wide := [into for stored, into in plan.dtype_changes.values() if stored == WIDE]:
        logger.warning(
            "%s: %d arrays are %s, which devices do not have: loaded as %s",
            *(path, len(wide), WIDE, wide[0]),
        )


def _is_tied(config: Config) -> bool:
    last = stacks_of(config)[-1]
    return isinstance(last, DecoderConfig) and last.head.tied


def _untied(checkpoint: Checkpoint) -> Checkpoint:
    """Returns the checkpoint with a config that ties no head."""
    config = {**checkpoint.config, TIED: False}
    parts = {n: v for n, v in config.items() if isinstance(v, dict) and TIED in v}
    config |= {name: {**part, TIED: False} for name, part in parts.items()}
    return dataclasses.replace(checkpoint, config=config)


def check_copies(plan: ArrayReads, place: object) -> None:
    """Checks that copies equal their originals bit for bit; only the originals are loaded.

    Raises:
        CheckpointError: some copies differ. Lists all of them.
    """
    limit = chunk_bytes(plan.max_ram)
    if problems := [
        f"{copy} should be a copy of {original} but differs from it"
        for copy, original in plan.copies()
        if not have_same_bits(plan.tensors[copy], plan.tensors[original], limit)
    ]:
        raise CheckpointError(problems, place)


def have_same_bits(one: StoredTensor, other: StoredTensor, max_bytes: int) -> bool:
    """Returns whether two tensors are equal bit for bit.

    Args:
        one: a tensor.
        other: the tensor to compare it with.
        max_bytes: the most bytes of each to read at a time.
    """
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    bits = np.dtype(f"u{one.dtype.itemsize}")
    with Reader() as first, Reader() as second:
        return all(
            np.array_equal(first.read(one, box).view(bits), second.read(other, box).view(bits))
            for box in chunks(one, max_bytes)
        )
