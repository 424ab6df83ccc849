"""Prefixes of stored names, which differ between models with a head, without one, and wrapped."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, TypeVar

from .heads import HEADS, is_head

Stored = TypeVar("Stored")


class Prefixes(NamedTuple):
    """The prefixes of a checkpoint's tensor names, in place of its family's prefix.

    A Llama has `model.` and no outer prefix; saved without its head it has neither, by Lightning
    `model.model.` and `model.`, inside a multimodal model `language_model.model.` and
    `language_model.`.

    Attributes:
        family: the prefix of the model without its head in the family's own names.
        base: what the checkpoint has in its place.
        outer: what the checkpoint has in front of all other names, such as the head's.
    """

    family: str
    base: str
    outer: str

    @property
    def are_usual(self) -> bool:
        """Whether the checkpoint has the family's own names."""
        return self.base == self.family and not self.outer

    def stored(self, name: str) -> str:
        """Returns the checkpoint's name of a tensor, from its name in the family."""
        if name.startswith(self.family) and not (self.family == "" and is_head(name)):
            return self.base + name.removeprefix(self.family)
        return self.outer + name

    def usual(self, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
        """Returns tensors by the family's names; those outside of the model keep their own."""
        if self.are_usual:
            return dict(tensors)
        return {self._usual(name): tensor for name, tensor in tensors.items()}

    def _usual(self, name: str) -> str:
        plain = name.removeprefix(self.outer)
        if not name.startswith(self.base) or (self.base in ("", self.outer) and is_head(plain)):
            return plain
        return self.family + name.removeprefix(self.base)


def find_prefixes(names: Collection[str], family: str, embeddings: Sequence[str]) -> Prefixes:
    """Finds the prefixes of a checkpoint from the name of its embedding.

    Args:
        names: the stored names.
        family: the family's prefix, such as `model.`.
        embeddings: names that the embedding may have after that prefix, the usual one first.

    Returns:
        The prefixes; the family's own ones if no name or the usual name is an embedding's.
    """
    usual = Prefixes(family, family, "")
    for embedding in embeddings:
        found = [one.removesuffix(embedding) for one in names if _ends_with(one, embedding)]
        if family in found:
            return usual
        if found:
            sizes = Counter({base: sum(n.startswith(base) for n in names) for base in found})
            base = sizes.most_common(1)[0][0]
            return Prefixes(family, base, _find_outer(names, base, family))
    return usual


def _find_outer(names: Collection[str], base: str, family: str) -> str:
    """Returns the prefix of the head if there is one, else what the base's prefix leaves for it."""
    for head in HEADS:
        for name in names:
            if _ends_with(name, head) and base.startswith(name.removesuffix(head)):
                return name.removesuffix(head)
    return base.removesuffix(family) if f".{base}".endswith(f".{family}") else ""


def _ends_with(name: str, last: str) -> bool:
    return name == last or name.endswith("." + last)
