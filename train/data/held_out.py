"""Held-out split: chosen by a hash of each example's content."""

from collections.abc import Sequence
from hashlib import blake2b

from jaxllm.config.checks import check_seed
from jaxllm.errors import UserError


def check_split(held_out: float, seed: int) -> None:
    """Raises UserError unless `held_out` is in [0, 1) and `seed` is valid for NumPy and grain."""
    if not 0 <= held_out < 1:
        raise UserError(f"data.held_out={held_out} is not in [0, 1)")
    check_seed(seed, "data.seed")


def split_held_out(contents: Sequence[bytes], held_out: float) -> list[bool]:
    """Returns, for each example, whether it is held out: its hash in [0, 1) is below `held_out`.

    The split is stable: adding examples does not move others, and identical examples stay on the
    same side. With two or more different examples and `held_out` > 0, at least one is held out
    and at least one is not.
    """
    digests = [blake2b(content, digest_size=6).digest() for content in contents]
    hashes = [int.from_bytes(digest) / 2**48 for digest in digests]
    if held_out == 0 or len(set(hashes)) < 2:
        return [False] * len(contents)
    lowest, highest = min(hashes), max(hashes)
    return [number == lowest or number < min(held_out, highest) for number in hashes]
