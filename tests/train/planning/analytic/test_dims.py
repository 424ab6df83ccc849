"""Dimension labels of operations: split the labelled dimensions and nothing else changes.

The property that defines a label: if an operation runs on the parts of its inputs along a label,
the results are the parts of its output along it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.train.planning.analytic.dims import dim_labels
from jaxllm.train.planning.analytic.program import flatten

A = np.arange(24.0).reshape(4, 6)
CASES = {
    "dot": (lambda x, y: x @ y, (A, np.arange(12.0).reshape(6, 2))),
    "batched dot": (
        lambda x, y: jnp.einsum("abc,adc->abd", x, y),
        (np.arange(24.0).reshape(2, 4, 3), np.arange(12.0).reshape(2, 2, 3)),
    ),
    "transpose": (lambda x: x.T, (A,)),
    "broadcast": (lambda x: jax.lax.broadcast_in_dim(x, (2, 6), (1,)), (np.arange(6.0),)),
    "reduce": (lambda x: x.sum(0), (A,)),
    "slice": (lambda x: jax.lax.slice(x, (0, 2), (4, 4)), (A,)),
    "pad": (lambda x: jax.lax.pad(x, 0.0, [(0, 0, 0), (1, 1, 0)]), (A,)),
    "concatenate": (lambda x, y: jax.lax.concatenate([x, y], 1), (A, A[:, :2])),
    "sort": (lambda x: jax.lax.sort(x, dimension=1), (-A,)),
    "sum along": (lambda x: jax.lax.cumsum(x, axis=0), (A,)),
    "add": (jax.lax.add, (A, A + 1)),
    "squeeze": (lambda x: jax.lax.squeeze(x, (0,)), (A[None],)),
}


def _split(array, labels, label, part):
    for axis, name in enumerate(labels):
        if name is not None and name == label:
            return np.split(array, 2, axis)[part]
    return array


@pytest.mark.parametrize("name", CASES)
def test_parts_along_a_label_give_the_parts_of_the_result(name):
    function, arrays = CASES[name]
    op = flatten(jax.make_jaxpr(function)(*arrays), "tpu").ops[-1]
    labels = dim_labels(op)
    (kept,) = labels.outputs
    whole = np.asarray(function(*arrays))
    found = 0
    for label in filter(lambda x: x is not None, kept):
        if op.name == "broadcast_in_dim" and not any(label in each for each in labels.inputs):
            continue  # a dimension that is made, in any part
        parts = [
            [_split(x, each, label, i) for x, each in zip(arrays, labels.inputs, strict=False)]
            for i in (0, 1)
        ]
        axis = kept.index(label)
        if op.name == "broadcast_in_dim":
            results = [np.broadcast_to(part[0], (2, 3)) for part in parts]
        elif op.name == "slice":
            results = [part[0][:, 2:4] for part in parts]
        else:
            results = [np.asarray(function(*part)) for part in parts]
        np.testing.assert_array_equal(np.concatenate(results, axis), whole)
        found += 1
    assert found


@pytest.mark.parametrize(
    ("before", "after", "ins", "outs"),
    [
        ((4, 6), (24,), [True, False], [True]),
        ((24,), (4, 6), [True], [True, False]),
        ((4, 6, 5), (4, 30), [True, True, False], [True, True]),
        ((1, 4, 6), (4, 6), [False, True, True], [True, True]),
    ],
)
def test_a_reshape_keeps_the_first_dimension_of_each_group(before, after, ins, outs):
    function = lambda x: jax.lax.reshape(x, after)  # noqa: E731
    labels = dim_labels(flatten(jax.make_jaxpr(function)(jnp.zeros(before)), "tpu").ops[-1])
    assert [x is not None for x in labels.inputs[0]] == ins
    assert [x is not None for x in labels.outputs[0]] == outs
    assert [x for x in labels.inputs[0] if x] == [x for x in labels.outputs[0] if x]


def test_lookups_keep_rows_and_windows_and_sum_over_the_table():
    table, rows = jnp.zeros((9, 4)), jnp.zeros((2, 3), jnp.int32)
    op = next(
        op
        for op in flatten(
            jax.make_jaxpr(lambda t, r: t.at[r].get(mode="fill"))(table, rows), "tpu"
        ).ops
        if op.name == "gather"
    )
    of_table, of_rows = dim_labels(op).inputs[:2]
    (out,) = dim_labels(op).outputs
    assert out == [*of_rows[:2], of_table[1]]
    assert of_table[0] not in out
