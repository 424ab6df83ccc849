"""Rules are bijections: both directions from one line, and any box pulls back to its source."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.interop.rules import Rule, Side, Transfer, split_range

AXES = "ABCDE"


def fill(transfer: Transfer, tensors: dict, index: dict, box: list):
    """The `box` of a target tensor, put together from source tensors."""
    out = np.full([high - low for low, high in box], -1, np.int64)
    for piece in transfer.pieces(index, box):
        transfer.copy(piece, tensors[piece.name], out)
    return out


def convert(transfer: Transfer, tensors: dict) -> dict:
    """All target tensors, whole."""
    box = [(0, size) for size in transfer.target.shape(transfer.sizes)]
    return {
        name: fill(transfer, tensors, index, box)
        for name, index in transfer.target.names(transfer.sizes)
    }


def by_index(side: Side, sizes: dict) -> dict:
    """The side's tensors; each element holds the number of its axes' joint position."""
    order = sorted(side.axes)
    numbers = np.arange(math.prod(sizes[a] for a in order)).reshape([sizes[a] for a in order])
    array = numbers.transpose([order.index(a) for a in side.axes])
    names = len(side.name_axes)
    return {
        name: array[tuple(index.values())].reshape(side.shape(sizes))
        for name, index in side.names(sizes)
        if names == len(index)
    }


@st.composite
def sides(draw, axes: list[str]):
    order = draw(st.permutations(axes))
    cut = draw(st.integers(0, min(2, len(order) - 1)))
    dims, rest = [], list(order[cut:])
    while rest:
        take = draw(st.integers(1, len(rest)))
        dims.append(tuple(rest[:take]))
        rest = rest[take:]
    return Side("x" + "".join(f".{{{a}}}" for a in order[:cut]), tuple(dims))


@st.composite
def cases(draw):
    axes = list(AXES[: draw(st.integers(1, 5))])
    sizes = {axis: draw(st.integers(1, 4)) for axis in axes}
    source, target = draw(sides(axes)), draw(sides(axes))
    box = []
    for size in target.shape(sizes):
        low = draw(st.integers(0, size - 1))
        box.append((low, draw(st.integers(low + 1, size))))
    return source, target, sizes, box


@given(cases())
@settings(max_examples=300, deadline=None)
def test_every_box_of_random_rules_equals_the_box_of_the_whole(case):
    source, target, sizes, box = case
    stored, expected = by_index(source, sizes), by_index(target, sizes)
    for name, index in target.names(sizes):
        got = fill(Transfer(source, target, sizes), stored, index, box)
        np.testing.assert_array_equal(got, expected[name][tuple(slice(*b) for b in box)])


@given(cases())
@settings(max_examples=100, deadline=None)
def test_there_and_back_returns_the_same_tensors(case):
    source, target, sizes, _ = case
    stored = by_index(source, sizes)
    model = convert(Transfer(source, target, sizes), stored)
    back = convert(Transfer(target, source, sizes), model)
    assert back.keys() == stored.keys()
    for name, tensor in stored.items():
        np.testing.assert_array_equal(back[name], tensor)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_split_range_covers_each_position_once(sizes, data):
    total = math.prod(sizes)
    low = data.draw(st.integers(0, total))
    high = data.draw(st.integers(low, total))
    covered = []
    for box in split_range(low, high, sizes):
        grid = itertools.product(*(range(*r) for r in box))
        positions = [int(np.ravel_multi_index(p, sizes)) for p in grid]
        assert positions == list(range(positions[0], positions[-1] + 1))
        covered += positions
    assert covered == list(range(low, high))


def test_the_published_llama_permutation_is_one_rule():
    """Meta's interleaved rows to Hugging Face's halves, with fewer key heads than query heads."""
    sizes = {"L": 2, "T": 2, "D": 16, "k": 1, "K": 2, "h": 3, "r": 2}
    meta = Rule("{T:02}/layers.{L}.wk : (k h r) D", "layers.{L}.k_proj : D (T k) (r h)")
    rng = np.random.default_rng(0)
    shards = {
        name: rng.integers(0, 10**6, meta.stored.shape(sizes))
        for name, _ in meta.stored.names(sizes)
    }
    hf = Rule("model.layers.{L}.k_proj.weight : (K r h) D", "layers.{L}.k_proj : D K (r h)")
    model = convert(meta.importing(sizes), shards)
    ours = convert(hf.exporting(sizes), model)
    for layer in range(2):
        whole = np.concatenate([shards[f"0{t}/layers.{layer}.wk"] for t in range(2)])
        published = whole.reshape(2, 3, 2, 16).swapaxes(1, 2).reshape(12, 16)
        np.testing.assert_array_equal(ours[f"model.layers.{layer}.k_proj.weight"], published)


def test_a_stacked_model_takes_the_same_rule():
    rule = Rule("h.{L}.{G=gate|up}.weight : F D", "layers.{L}.mlp.w_in : D G F")
    sizes = {"L": 3, "G": 2, "F": 4, "D": 5}
    stored = by_index(rule.stored, sizes)
    one_by_one = convert(rule.importing(sizes), stored)
    [(stacked, bound)] = rule.bound(sizes, {"layers": {"0:3": range(3)}})
    assert stacked.model == Side("layers.0:3.mlp.w_in", (("L",), ("D",), ("G",), ("F",)))
    whole = convert(stacked.importing(bound), stored)["layers.0:3.mlp.w_in"]
    for layer in range(3):
        np.testing.assert_array_equal(whole[layer], one_by_one[f"layers.{layer}.mlp.w_in"])
    np.testing.assert_array_equal(stored["h.1.up.weight"].T, whole[1, :, 1])


def test_a_replicated_tensor_is_read_once_and_written_to_every_copy():
    rule = Rule("{T:02}/norm : D", "final_norm.scale : D", replicated="T")
    sizes = {"T": 3, "D": 4}
    read = [p.name for p in rule.importing(sizes).pieces({}, [(0, 4)])]
    assert read == ["00/norm"]
    written = convert(rule.exporting(sizes), {"final_norm.scale": np.arange(4)})
    assert sorted(written) == ["00/norm", "01/norm", "02/norm"]
    assert all((copy == np.arange(4)).all() for copy in written.values())


@pytest.mark.parametrize(
    ("left", "right", "replicated", "message"),
    [
        ("a : X Y", "b : X Z", "", "Y only on the left; Z only on the right"),
        ("a.{L} : X", "b : X", "", "L only on the left"),
        ("a : X X", "b : X", "", "X twice in 'a'"),
        ("a : T X", "b : X", "T", "replicated T must be in the left name alone"),
        ("a : (X", "b : X", "", "is not of the form"),
        ("a", "b : X", "", "is not of the form"),
    ],
)
def test_what_is_not_a_bijection_is_refused_when_it_is_written(left, right, replicated, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        Rule(left, right, replicated)
