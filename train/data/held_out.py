"""Held-out split: chosen by a hash of each example's content."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from jaxllm.config.checks import check_seed
from jaxllm.errors import UserError


def check_split(held_out: float, seed: int, max_epochs: int | None = None) -> None:
    """Raises UserError unless `held_out` is in [0, 1) and `seed` is valid for NumPy and grain.

    Likewise if `max_epochs` is given and not positive.
    """
    if max_epochs is not None and max_epochs < 1:
        raise UserError(f"data.max_epochs={max_epochs} is not a positive number")
    if not 0 <= held_out < 1:
        raise UserError(f"data.held_out={held_out} is not in [0, 1)")
    check_seed(seed, "data.seed")


def split_held_out(contents: Sequence[bytes], held_out: float) -> list[bool]:
    """Returns, for each example, whether it is held out: its hash in [0, 1) is below `held_out`.

    The split is stable: adding examples does not move others, and identical examples stay on the
    same side. With two or more different examples and `held_out` > 0, at least one is held out
    and at least one is not.
    """
    hashes = np.array([content_hash(content) for content in contents], np.uint64)
    return choose_held_out(hashes, held_out).tolist()


def content_hash(content: bytes) -> int:
    """Returns a number in [0, 2**48) that looks random and depends on the content alone."""
    return int.from_bytes(blake2b(content, digest_size=6).digest())


def choose_held_out(hashes: np.ndarray, held_out: float) -> np.ndarray:
    """Returns which examples with these hashes are held out, bool; see `split_held_out`."""
    numbers = hashes / 2**48
    if held_out == 0 or not len(numbers) or numbers.min() == numbers.max():
        return np.zeros(len(numbers), bool)
    return (numbers == numbers.min()) | (numbers < min(held_out, numbers.max()))
