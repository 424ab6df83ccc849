"""Tensors whose names differ only in indices are folded, by layer and by expert."""

from jaxllm.interop.inspection.layout_search import Stored, fold_layers

LAYERS = {(0, 1, 2)}


def test_tensors_of_all_layers_fold_into_one():
    shapes = {f"h.{i}.w": (4, 5) for i in range(3)} | {"norm": (4,)}
    assert list(fold_layers(shapes, LAYERS, None)) == [
        Stored("h.{L}.w", (4, 5), (0, 1, 2)),
        Stored("norm", (4,)),
    ]


def test_tensors_of_all_experts_fold_into_one():
    shapes = {f"h.{i}.experts.{e}.w": (4, 5) for i in range(3) for e in range(2)}
    [found] = fold_layers(shapes, LAYERS, 2)
    assert found == Stored("h.{L}.experts.{E}.w", (4, 5), (0, 1, 2), has_experts=True)


def test_other_numbers_in_names_are_kept():
    shapes = {f"h.{i}.fc{n}.{n}.w": (4,) for i in range(3) for n in (1, 7)}
    names = {tensor.name for tensor in fold_layers(shapes, LAYERS, 2)}
    assert names == {"h.{L}.fc1.1.w", "h.{L}.fc7.7.w"}


def test_tensors_of_different_shapes_are_not_folded():
    shapes = {"h.0.w": (4,), "h.1.w": (5,), "h.2.w": (4,)}
    assert {tensor.name for tensor in fold_layers(shapes, LAYERS, None)} == {
        "h.0.w",
        "h.1.w",
        "h.2.w",
    }
