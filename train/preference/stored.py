"""The reference's log-likelihoods of all preferences, computed once and kept beside the run."""

import io
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxllm.storage.paths import is_remote
from jaxllm.storage.whole_file import write_whole
from jaxllm.train.config import ConfigError
from jaxllm.train.data.batches import Batch, Batches, Examples, Rows, digest

log = logging.getLogger("jaxllm")

FILE = "reference.npz"  # in the folder of a run
SPLITS = ("train", "held_out")


class ReferredRows(NamedTuple):
    """Rows of preferences with the log-likelihoods of both answers under the reference."""

    rows: Rows
    reference_B2: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_tokens(self) -> int:
        """The tokens of all rows, without padding."""
        return self.rows.num_tokens

    def take(self, rows: np.ndarray) -> Batch:
        """Returns the examples at these row numbers, with `reference`, float32 (B, 2)."""
        return {**self.rows.take(rows), "reference": self.reference_B2[rows]}


def with_log_likelihoods(batches: Batches, found: dict[str, np.ndarray]) -> Batches:
    """Returns the batches with what `compute` or `read` found."""
    examples = batches.examples
    train, held_out = (ReferredRows(getattr(examples, name), found[name]) for name in SPLITS)
    fingerprint = {f"{name}_reference": digest(found[name]) for name in SPLITS}
    return Batches(
        Examples(train, held_out, {**examples.fingerprint, **fingerprint}),
        batch_size=batches.batch_size,
        seed=batches.seed,
        rows=batches.rows,
    )


def compute(batches: Batches, refer: Callable[[Batch], Any]) -> dict[str, np.ndarray]:
    """Returns the log-likelihoods of all rows by split, float32 (rows, 2).

    Args:
        batches: of preferences; all processes take part.
        refer: returns those of the rows of a batch that this process has read, for all processes.
    """
    examples, B = batches.examples, batches.batch_size
    total = len(examples.train) + len(examples.held_out)
    log.info("computing the reference's log-likelihoods of %s preferences, once", f"{total:,}")
    found = {}
    for name in SPLITS:
        rows = getattr(examples, name)
        parts = [np.zeros((0, 2), np.float32)]
        for start in range(0, len(rows), B):
            wanted = np.minimum(np.arange(start, start + B), len(rows) - 1)
            scored = np.asarray(refer(rows.take(wanted[batches.rows])))
            parts.append(scored[: len(rows) - start])
        found[name] = np.concatenate(parts)
    return found


def write(folder: Any, found: dict[str, np.ndarray]) -> None:
    """Writes what `compute` found into the folder of a run; process 0 does."""
    if jax.process_index() > 0:
        return
    content = io.BytesIO()
    np.savez(content, train=found["train"], held_out=found["held_out"])
    if is_remote(folder):
        (folder / FILE).write_bytes(content.getvalue())
    else:
        write_whole(folder / FILE, content.getvalue())


def read(folder: Any, batches: Batches) -> dict[str, np.ndarray]:
    """Reads what `write` wrote.

    Raises:
        ConfigError: the file is missing, damaged or of other preferences.
    """
    file = folder / FILE
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{file}: the reference's log-likelihoods are gone: {error.strerror or error}; put the "
            "file back, or begin a new run"
        ) from None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            found = {name: stored[name] for name in SPLITS}
    except Exception as error:  # of zipfile, NumPy or zlib
        raise ConfigError(
            f"{file}: this is no file of log-likelihoods, or it is damaged: {error}"
        ) from None
    for name, values in found.items():
        expected = len(getattr(batches.examples, name)), 2
        if values.shape != expected or values.dtype != np.float32:
            raise ConfigError(
                f"{file}: {name} has {values.dtype} {values.shape}, expected float32 {expected}: "
                "it is of other preferences"
            )
    return found
