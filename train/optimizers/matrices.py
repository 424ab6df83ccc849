"""Parameters as matrices: which of their dimensions are rows and columns, and which count them."""

from typing import NamedTuple

from flax import nnx

from jaxllm.params import dim_letters


class Shape(NamedTuple):
    """The dimensions of a parameter, by their place.

    A kernel DNH is a matrix with rows D and columns N H. A parameter that is no matrix, such as a
    norm's scale, has neither.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    own: tuple[int, ...]  # all but those that count layers and experts

    @property
    def is_matrix(self) -> bool:
        """Whether it has rows and columns."""
        return bool(self.rows and self.columns)


def shape_of(variable: nnx.Variable) -> Shape:
    """Returns the dimensions of a parameter."""
    letters, summed = dim_letters(variable), getattr(variable, "summed", "")
    counting = len(letters) - len(variable.dims)  # a leading L
    counting += bool(summed) and variable.dims[0] == "E"  # one kernel per expert
    own = tuple(range(counting, len(letters)))
    rows = tuple(place for place in own if letters[place] in summed)
    columns = tuple(place for place in own if place not in rows) if rows else ()
    return Shape(rows, columns, own)
