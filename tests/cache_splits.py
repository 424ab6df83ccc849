"""Ways to cut a sequence that is read through a cache."""

import itertools


def splits(length: int, first: int) -> list[tuple[int, int]]:
    """A prefix, then two tokens at once, then one by one."""
    cuts = [0, first, min(first + 2, length), *range(first + 3, length + 1)]
    return [(a, b) for a, b in itertools.pairwise(cuts) if a < b]
