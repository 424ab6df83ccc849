"""What is never trained on: decided for each example by its content alone."""

from collections.abc import Sequence
from hashlib import blake2b

from jaxllm.errors import UserError


def check_split(held_out: float, seed: int) -> None:
    """Raises UserError unless this is a fraction to hold out and a seed for NumPy and grain."""
    if not 0 <= held_out < 1:
        raise UserError(f"held_out={held_out} is not in [0, 1)")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} is not in [0, 2**32)")


def split_held_out(contents: Sequence[bytes], held_out: float) -> list[bool]:
    """Which examples are held out: those whose hash, as a number in [0, 1), is below `held_out`.

    What becomes of one depends on no other, and copies stay together. Of two or more different
    ones at least one is held out, unless the fraction is 0, and one is not.
    """
    digests = [blake2b(content, digest_size=6).digest() for content in contents]
    places = [int.from_bytes(digest) / 2**48 for digest in digests]
    if held_out == 0 or len(set(places)) < 2:
        return [False] * len(contents)
    lowest, highest = min(places), max(places)
    return [place == lowest or place < min(held_out, highest) for place in places]
