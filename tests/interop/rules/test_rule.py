"""Rules are bijections: one line gives both directions, and any box maps back to its source."""

import itertools
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.interop.families import RuleTable
from jaxllm.interop.formats.lazy_tensor import from_array
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.loading.plan import split_fused
from jaxllm.interop.rules.axis_ranges import split_range
from jaxllm.interop.rules.pattern import Side
from jaxllm.interop.rules.rule import Rule
from jaxllm.interop.rules.transfer import Transfer
from jaxllm.interop.saving.export import export_tensors
from jaxllm.layers.stack import find_runs, layer_range

AXES = "ABCDE"


def fill(transfer: Transfer, tensors: dict, index: dict, box: list):
    """Returns a box of a target tensor, assembled from source tensors."""
    out = np.full([high - low for low, high in box], -1, np.int64)
    for piece in transfer.pieces(index, box):
        transfer.copy(piece, tensors[piece.name], out)
    return out


def convert(transfer: Transfer, tensors: dict) -> dict:
    """Returns all target tensors, whole."""
    box = [(0, size) for size in transfer.target.shape(transfer.sizes)]
    return {
        name: fill(transfer, tensors, index, box)
        for name, index in transfer.target.names(transfer.sizes)
    }


def by_index(side: Side, sizes: dict) -> dict:
    """Returns the side's tensors; each element is the number of its position along all axes."""
    order = sorted(side.axes)
    numbers = np.arange(math.prod(sizes[a] for a in order)).reshape([sizes[a] for a in order])
    array = numbers.transpose([order.index(a) for a in side.axes])
    return {
        name: array[tuple(index[axis] for axis in side.name_axes)].reshape(side.shape(sizes))
        for name, index in side.names(sizes)
    }


@st.composite
def placeholders(draw, axes: list[str], sizes: dict):
    """Draws a name with these axes: alone or two merged, as numbers, padded numbers or labels."""
    found, rest = [], list(axes)
    while rest:
        taken = [rest.pop(0) for _ in range(draw(st.integers(1, min(2, len(rest)))))]
        count = math.prod(sizes[axis] for axis in taken)
        labels = draw(st.permutations([f"of_{i}" for i in range(count)]))
        style = draw(st.sampled_from(["", ":02", "=" + "|".join(labels)]))
        found.append("{" + " ".join(taken) + style + "}")
    return ".".join(["x", *found])


@st.composite
def sides(draw, axes: list[str], sizes: dict):
    order = draw(st.permutations(axes))
    cut = draw(st.integers(0, min(3, len(order) - 1)))
    dims, rest = [], list(order[cut:])
    while rest:
        take = draw(st.integers(0, len(rest)))  # 0: a dimension of size 1, written ()
        dims.append(tuple(rest[:take]))
        rest = rest[take:]
        if len(dims) > len(order) + 2:
            dims.append(tuple(rest))
            break
    return Side(draw(placeholders(order[:cut], sizes)), tuple(dims))


@st.composite
def cases(draw):
    axes = list(AXES[: draw(st.integers(1, 5))])
    sizes = {axis: draw(st.integers(1, 4)) for axis in axes}
    source, target = draw(sides(axes, sizes)), draw(sides(axes, sizes))
    box = []
    for size in target.shape(sizes):
        low = draw(st.integers(0, size - 1))
        box.append((low, draw(st.integers(low + 1, size))))
    return source, target, sizes, box


@given(cases())
@settings(max_examples=300, deadline=None)
def test_every_box_equals_the_same_box_of_the_whole_array(case):
    source, target, sizes, box = case
    stored, expected = by_index(source, sizes), by_index(target, sizes)
    for name, index in target.names(sizes):
        got = fill(Transfer(source, target, sizes), stored, index, box)
        np.testing.assert_array_equal(got, expected[name][tuple(slice(*b) for b in box)])


@given(cases())
@settings(max_examples=100, deadline=None)
def test_round_trip_returns_the_same_tensors(case):
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


def test_published_llama_permutation_is_one_rule():
    """Maps Meta's interleaved rows to Hugging Face's halves, with fewer key than query heads."""
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


def test_one_rule_serves_stacked_and_unstacked_layers():
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


def test_replicated_tensor_is_read_once_and_written_to_every_copy():
    rule = Rule("{T:02}/norm : D", "final_norm.scale : D", replicated="T")
    sizes = {"T": 3, "D": 4}
    read = [p.name for p in rule.importing(sizes).pieces({}, [(0, 4)])]
    assert read == ["00/norm"]
    written = convert(rule.exporting(sizes), {"final_norm.scale": np.arange(4)})
    assert sorted(written) == ["00/norm", "01/norm", "02/norm"]
    assert all((copy == np.arange(4)).all() for copy in written.values())


@given(cases())
@settings(max_examples=100, deadline=None)
def test_rule_equals_the_sides_its_text_describes(case):
    source, target, _, _ = case

    def text(side: Side) -> str:
        dims = (dim[0] if len(dim) == 1 else f"({' '.join(dim)})" for dim in side.dims)
        return f"{side.name} : {' '.join(dims)}"

    rule = Rule(text(source), text(target))
    assert (rule.stored, rule.model) == (source, target)


@given(cases(), st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_replicated_axis_writes_every_copy_and_reads_the_first(case, copies):
    source, target, sizes, _ = case
    stored = Side(f"{{T}}/{source.name}", source.dims)
    rule = Rule(stored, target, replicated="T")
    sizes = {**sizes, "T": copies}
    model = by_index(target, sizes)
    written = convert(rule.exporting(sizes), model)
    assert len(written) == copies * len(list(source.names(sizes)))
    for name, tensor in written.items():
        np.testing.assert_array_equal(tensor, written["0" + name[name.index("/") :]])
    first = {name: tensor for name, tensor in written.items() if name.startswith("0/")}
    for name, array in convert(rule.importing(sizes), first).items():
        np.testing.assert_array_equal(array, model[name])


@st.composite
def stacked_models(draw):
    """Draws the kind of each layer, and the stacks of such layers, scanned or not."""
    period = draw(st.lists(st.sampled_from("ab"), min_size=1, max_size=3))
    kinds = (period * 4)[: draw(st.integers(1, 8))]
    labels = [label for run in find_runs(kinds, draw(st.booleans())) for label in run.labels]
    return kinds, {"layers": {label: layer_range(label) for label in labels}}


@given(stacked_models(), st.booleans())
@settings(max_examples=100, deadline=None)
def test_rule_limited_to_some_layers_fills_only_their_stacks(model, padded):
    kinds, stacks = model
    sizes = {"L": len(kinds), "D": 2, "F": 3}
    layer = "{L:02}" if padded else "{L}"
    for kind in sorted(set(kinds)):
        own = [i for i, other in enumerate(kinds) if other == kind]
        rule = Rule(f"h.{layer}.{kind}.w : F D", f"layers.{{L}}.{kind}.kernel : D F", layers=own)
        stored = by_index(rule.stored, sizes)
        one_by_one = convert(rule.importing(sizes), stored)
        read, filled = set(), set()
        for bound, of_stack in rule.bound(sizes, stacks):
            read |= {name for name, _ in bound.stored.names(of_stack)}
            for name, array in convert(bound.importing(of_stack), stored).items():
                label = name.split(".")[1]
                layers = [one_by_one[f"layers.{i}.{kind}.kernel"] for i in layer_range(label)]
                expected = np.stack(layers) if len(layers) > 1 else layers[0]
                np.testing.assert_array_equal(array, expected)
                filled |= set(layer_range(label))
        assert filled == set(own)
        assert read == {rule.stored.format_name({"L": i}, sizes) for i in own}


@given(st.lists(st.integers(1, 4), min_size=2, max_size=4), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_parts_are_row_ranges_of_a_fused_tensor(tmp_path_factory, rows, layers, width):
    axes = AXES[: len(rows)]
    rules = tuple(
        Rule(f"h.{{L}}.w#{axis} : (G {axis}) X", f"layers.{{L}}.{axis} : X {axis} G")
        for axis in axes
    )
    sizes = {"L": layers, "G": 2, "X": width, **dict(zip(axes, rows, strict=True))}
    stacks = {"layers": {"0": range(1)} if layers == 1 else {f"0:{layers}": range(layers)}}
    bound = RuleTable(rules, sizes).bound(stacks)
    path = tmp_path_factory.mktemp("fused") / "numbers"
    fused = np.arange(layers * 2 * sum(rows) * width).reshape(layers, -1, width)
    fused.tofile(path)
    tensors = {
        f"h.{i}.w": StoredTensor(
            f"h.{i}.w", fused.dtype, fused.shape[1:], path, i * fused[0].nbytes
        )
        for i in range(layers)
    }
    parts = {name: part.read() for name, part in split_fused(bound, tensors).items()}
    starts = np.cumsum([0, *rows]) * 2
    for axis, start, stop in zip(axes, starts, starts[1:], strict=False):
        np.testing.assert_array_equal(parts[f"h.0.w#{axis}"], fused[0, start:stop])
    arrays = {}
    for rule, of_stack in bound:
        arrays |= convert(rule.importing(of_stack), parts)
    sources = {name: from_array(array) for name, array in arrays.items()}
    model = SimpleNamespace(stacks=stacks, arrays=sources)
    written = dict(export_tensors(model, RuleTable(rules, sizes)))
    assert written.keys() == tensors.keys()
    for i in range(layers):
        tensor = written[f"h.{i}.w"]
        np.testing.assert_array_equal(tensor.read(tensor.whole), fused[i])


# A rule that is not a bijection is rejected when it is created; the message names the axis.


@given(cases(), st.data())
@settings(max_examples=200, deadline=None)
def test_error_names_the_axis_that_breaks_the_bijection(case, data):
    sides = list(case[:2])
    at = data.draw(st.integers(0, 1), "side")
    axis = data.draw(st.sampled_from(sides[at].axes), "axis")
    broken = data.draw(st.sampled_from(["added", "repeated", "replicated"]), "how")
    if broken == "added":
        axis = "Z"
    replicated = axis if broken == "replicated" else ""
    if broken != "replicated":
        sides[at] = Side(sides[at].name, (*sides[at].dims, (axis,)))
    with pytest.raises(ValueError, match=rf"not a bijection.*\b{axis}\b"):
        Rule(*sides, replicated=replicated)


@pytest.mark.parametrize(
    ("left", "right", "options", "message"),
    [
        ("a : X Y", "b : X Z", {}, "Y only on the left; Z only on the right"),
        ("a.{L} : X", "b : X", {}, "L only on the left"),
        ("a : X X", "b : X", {}, "X twice in 'a'"),
        ("a.{X}.{X} : Y", "b : X Y", {}, "X twice in"),
        ("a : T X", "b : X", {"replicated": "T"}, "replicated T must be in the left name only"),
        ("a.{T} : X", "b : T X", {"replicated": "T"}, "replicated T must be"),
        ("a : X", "b : X", {"replicated": "T"}, "replicated T must be"),
        ("a : (X", "b : X", {}, "is not of the form"),
        ("a", "b : X", {}, "is not of the form"),
        ("a.{G=q|k|q} : X", "b : G X", {}, "G has 'q' twice"),
        ("a.{G K=q|q} : X", "b : G K X", {}, "G K has 'q' twice"),
        ("a.{L-1} : X", "b : X", {}, "'{L-1}' in"),
        ("a.{L : X", "b : X", {}, "'{L' in"),
        ("a.{} : X", "b : X", {}, "'{}' in"),
        ("a : X", "b.L} : X", {}, "'}' in"),
        ("a#q : X", "b#q : X", {}, "'b#q' has a #part, which only"),
        ("a# : X", "b : X", {}, "'a#' does not name exactly one"),
        ("a#q : ", "b : ", {}, "'a#q' has no dimension"),
        ("a : X", "b : X", {"layers": [0]}, "layers=(0,) without layers.{L}"),
        ("a.{L} : X", "layers.{L}.b : X", {"layers": [1, 1]}, "layers has repeated or negative"),
        ("a.{L} : X", "layers.{L}.b : X", {"layers": [-1]}, "repeated or negative positions: -1"),
        ("a.{L X} : Y", "layers.{L}.b : X Y", {}, "the layer axis L is merged in 'a.{L X}'"),
    ],
)
def test_rule_that_is_not_a_bijection_is_rejected_on_creation(left, right, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Rule(left, right, **options)


LAYERS = {"layers": {"0:4:2": range(0, 4, 2), "1:4:2": range(1, 4, 2)}}


@pytest.mark.parametrize(
    ("left", "right", "options", "message"),
    [
        ("a.{G=q|k|v} : X", "b : G X", {}, "G is 2, but has the labels q|k|v"),
        ("a : G X", "b.{G=q} : X", {}, "G is 2, but has the labels q"),
        ("a.{G X=q|k|v} : ()", "b : G X ()", {}, "G X is 6, but has the labels q|k|v"),
        ("a : U X", "b : X U", {}, "U has no size"),
        ("a : O X", "b : X O", {}, "O is 0"),
        ("a.{L} : X", "encoder.layers.{L}.b : X", {}, "L: the model has no encoder.layers"),
        ("a.{X} : G", "layers.{X}.b : G", {}, "X is 3, but the model has 4 layers"),
        ("a.{L} : X", "layers.{L}.b : X", {"layers": [2, 9]}, "layers 9 do not exist, the model"),
        ("a.{L} : X", "layers.{L}.b : X", {"layers": [0, 1, 3]}, "covers only [0] of them"),
        ("a : L X", "layers.{L}.b : X", {}, "L is a dimension of the stored array 'a'"),
    ],
)
def test_sizes_or_stacks_that_do_not_fit_are_rejected(left, right, options, message):
    rule = Rule(left, right, **options)
    with pytest.raises(ValueError, match=re.escape(message)):
        list(rule.bound({"L": 4, "G": 2, "X": 3, "O": 0}, LAYERS))


def test_layers_stored_as_one_array_fill_one_stack():
    rule = Rule("w : L X", "layers.{L}.b : X")
    [(bound, sizes)] = rule.bound({"L": 4, "X": 3}, {"layers": {"0:4": range(4)}})
    stored = {"w": np.arange(12).reshape(4, 3)}
    np.testing.assert_array_equal(
        convert(bound.importing(sizes), stored)["layers.0:4.b"], stored["w"]
    )
