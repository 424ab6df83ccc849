"""Which dimensions of an operation's inputs and outputs go together, whatever splits them.

Dimensions with the same label are split by the same mesh axes. A label that no output has is summed
over (or reduced otherwise); a dimension without a label must be whole on each device.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .program import Op, Value

Labels = list[Any]  # a label, or None


class DimLabels(NamedTuple):
    """A label, or None, for each dimension of each input and output."""

    inputs: Sequence[Labels]
    outputs: Sequence[Labels]


def dim_labels(op: Op) -> DimLabels:
    """Returns the labels of an operation. One that is not known is taken as elementwise."""
    return _RULES.get(op.name, _elementwise)(op)


def _own(value: Value, prefix: object = "") -> Labels:
    return [(prefix, i) for i in range(len(value.shape))]


def _elementwise(op: Op) -> DimLabels:
    """Labels dimensions by place, for inputs of the output's shape; others must be whole."""
    shape = max((value.shape for value in op.outputs), key=math.prod, default=())
    label = lambda value: [  # noqa: E731
        i if len(value.shape) == len(shape) and size == shape[i] else None
        for i, size in enumerate(value.shape)
    ]
    return DimLabels([label(v) for v in op.inputs], [label(v) for v in op.outputs])


def _dot(op: Op) -> DimLabels:
    (left_sum, right_sum), (left_batch, right_batch) = op.params["dimension_numbers"]
    left, right = _own(op.inputs[0], "l"), _own(op.inputs[1], "r")
    for i, j in (
        *zip(left_sum, right_sum, strict=True),
        *zip(left_batch, right_batch, strict=True),
    ):
        right[j] = left[i]
    out = [left[i] for i in left_batch]
    out += [x for i, x in enumerate(left) if i not in (*left_sum, *left_batch)]
    out += [x for j, x in enumerate(right) if j not in (*right_sum, *right_batch)]
    return DimLabels([left, right], [out])


def _transpose(op: Op) -> DimLabels:
    labels = _own(op.inputs[0])
    return DimLabels([labels], [[labels[i] for i in op.params["permutation"]]])


def _broadcast(op: Op) -> DimLabels:
    value, out = op.inputs[0], op.outputs[0]
    labels: Labels = [("new", i) for i in range(len(out.shape))]
    ins: Labels = []
    for i, place in enumerate(op.params["broadcast_dimensions"]):
        same = value.shape[i] == out.shape[place]
        ins.append(labels[place] if same else None)
    return DimLabels([ins, *([] for _ in op.inputs[1:])], [labels])


def _reduce(op: Op) -> DimLabels:
    value = op.inputs[0]
    labels = _own(value)
    kept = [x for i, x in enumerate(labels) if i not in op.params["axes"]]
    return DimLabels([labels] * len(op.inputs), [kept] * len(op.outputs))


def _reshape(op: Op) -> DimLabels:
    """Labels the leading dimension of each group of dimensions that are merged or divided."""
    before, after = op.inputs[0].shape, op.outputs[0].shape
    ins: Labels = [None] * len(before)
    outs: Labels = [None] * len(after)
    i = j = 0
    while i < len(before) and j < len(after):
        start = i, j
        left, right = before[i], after[j]
        while left != right:
            if left < right:
                i += 1
                left *= before[i]
            else:
                j += 1
                right *= after[j]
        first = _skip_ones(before, start[0], i), _skip_ones(after, start[1], j)
        ins[first[0]] = outs[first[1]] = ("group", *start)
        i, j = i + 1, j + 1
    return DimLabels([ins, *([] for _ in op.inputs[1:])], [outs])


def _skip_ones(shape: Sequence[int], first: int, last: int) -> int:
    return next((i for i in range(first, last) if shape[i] > 1), last)


def _squeeze(op: Op) -> DimLabels:
    labels = _own(op.inputs[0])
    dims = op.params["dimensions"]
    return DimLabels([labels], [[x for i, x in enumerate(labels) if i not in dims]])


def _resized(op: Op) -> DimLabels:
    """Slices, paddings and concatenations: a dimension that changes its size must be whole."""
    out = op.outputs[0]
    ins = [
        [i if size == out.shape[i] else None for i, size in enumerate(value.shape)]
        if len(value.shape) == len(out.shape)
        else [None] * len(value.shape)
        for value in op.inputs
    ]
    whole = {i for labels in ins[:1] for i in range(len(labels)) if labels[i] is None}
    labels: Labels = [None if i in whole else i for i in range(len(out.shape))]
    return DimLabels(ins, [labels] * len(op.outputs))


def _update(op: Op) -> DimLabels:
    value, update = op.inputs[:2]
    ins = [i if value.shape[i] == size else None for i, size in enumerate(update.shape)]
    return DimLabels([ins, ins, *([] for _ in op.inputs[2:])], [ins])


def _along(op: Op) -> DimLabels:
    """Sorts and cumulative sums: the dimension along which they go must be whole."""
    along = op.params.get("dimension", op.params.get("axis", -1))
    along = op.params["axes"][0] if "axes" in op.params else along
    ndim = len(op.inputs[0].shape)
    labels: Labels = [None if i == along % ndim else i for i in range(ndim)]
    if op.name == "argmax":
        return DimLabels([labels], [[x for i, x in enumerate(labels) if i != along % ndim]])
    return DimLabels([labels] * len(op.inputs), [labels] * len(op.outputs))


def _top_k(op: Op) -> DimLabels:
    labels: Labels = [*range(len(op.inputs[0].shape) - 1), None]
    return DimLabels([labels], [labels, labels])


def _iota(op: Op) -> DimLabels:
    return DimLabels([[] for _ in op.inputs], [_own(op.outputs[0])])


def _gather(op: Op) -> DimLabels:
    """Labels whole slices and the dimensions of the indices. What is looked up is summed over."""
    numbers, sizes = op.params["dimension_numbers"], op.params["slice_sizes"]
    table, indices = op.inputs[:2]
    rows: Labels = [("row", i) for i in range(len(indices.shape) - 1)]
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = [i for i in range(len(table.shape)) if i not in gone]
    labels: Labels = [
        ("table", i) if sizes[i] == table.shape[i] or i in gone else None
        for i in range(len(table.shape))
    ]
    _pair(labels, rows, numbers.operand_batching_dims, numbers.start_indices_batching_dims)
    out = _spread(len(op.outputs[0].shape), numbers.offset_dims, [labels[i] for i in kept], rows)
    return DimLabels([labels, [*rows, None], *([] for _ in op.inputs[2:])], [out])


def _scatter(op: Op) -> DimLabels:
    """Labels whole windows of the updates. Their other dimensions are summed over."""
    numbers = op.params["dimension_numbers"]
    table, indices, updates = op.inputs[:3]
    rows: Labels = [("row", i) for i in range(len(indices.shape) - 1)]
    gone = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    kept = [i for i in range(len(table.shape)) if i not in gone]
    labels: Labels = [None] * len(table.shape)
    for place, i in zip(numbers.update_window_dims, kept, strict=True):
        if updates.shape[place] == table.shape[i]:
            labels[i] = ("table", i)
    _pair(labels, rows, numbers.operand_batching_dims, numbers.scatter_indices_batching_dims)
    ups = _spread(len(updates.shape), numbers.update_window_dims, [labels[i] for i in kept], rows)
    return DimLabels([labels, [*rows, None], ups], [labels])


def _pair(labels: Labels, rows: Labels, dims: Sequence[int], of_indices: Sequence[int]) -> None:
    """Labels the batch dimensions of a table as those of the indices."""
    for i, j in zip(dims, of_indices, strict=True):
        labels[i] = rows[j]


def _spread(ndim: int, windows: Sequence[int], kept: Labels, rows: Labels) -> Labels:
    """Returns labels of looked-up rows: those of windows in their places, of indices in others."""
    labels, inner, outer = [None] * ndim, iter(kept), iter(rows)
    for place in range(ndim):
        labels[place] = next(inner if place in windows else outer)
    return labels


def _ragged_dot(op: Op) -> DimLabels:
    """Grouped matmuls run on the rows of one device, inside shard_map: nothing is split."""
    return DimLabels(
        [[None] * len(v.shape) for v in op.inputs], [[None] * len(v.shape) for v in op.outputs]
    )


def _stack(op: Op) -> DimLabels:
    axis = op.params.get("axis", 0)
    if op.name == "unstack":
        labels = _own(op.inputs[0])
        labels[axis] = None
        rest = [x for i, x in enumerate(labels) if i != axis]
        return DimLabels([labels], [rest] * len(op.outputs))
    labels = _own(op.inputs[0])
    return DimLabels([labels] * len(op.inputs), [[*labels[:axis], None, *labels[axis:]]])


_RULES: dict[str, Callable[[Op], DimLabels]] = {
    "dot_general": _dot,
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    **dict.fromkeys(
        ("reduce_sum", "reduce_max", "reduce_min", "reduce_or", "reduce_and", "reduce_prod"),
        _reduce,
    ),
    "reshape": _reshape,
    "squeeze": _squeeze,
    **dict.fromkeys(("slice", "pad", "concatenate", "dynamic_slice", "split", "rev"), _resized),
    "dynamic_update_slice": _update,
    **dict.fromkeys(("sort", "cumsum", "cummax", "cumlogsumexp", "argmax"), _along),
    "top_k": _top_k,
    "iota": _iota,
    "gather": _gather,
    **dict.fromkeys(("scatter", "scatter-add", "scatter_add"), _scatter),
    **dict.fromkeys(("ragged_dot_general", "ragged_dot"), _ragged_dot),
    **dict.fromkeys(("stack", "unstack"), _stack),
}
