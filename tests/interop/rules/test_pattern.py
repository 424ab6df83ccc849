"""A side of a rule is parsed from its text and lists every name that it stands for."""

import pytest

from jaxllm.interop.rules.pattern import Side

SIZES = {"L": 12, "E": 2, "N": 4, "H": 8, "D": 32}


def test_side_is_parsed_and_formatted():
    side = Side.parse("layers.{L:02}.q : (N H) D")
    assert side.dims == (("N", "H"), ("D",))
    assert side.name_axes == ("L",)
    assert side.axes == ("L", "N", "H", "D")
    assert side.shape(SIZES) == (32, 32)
    assert Side.parse(side.text) == side


def test_names_use_digits_labels_and_merged_axes():
    names = [name for name, _ in Side.parse("{L:02}/{E=up|down} : D").names(SIZES)]
    assert len(names) == 24
    assert names[:3] == ["00/up", "00/down", "01/up"]
    assert names[-1] == "11/down"
    merged = Side.parse("x.{L E} : D")
    assert merged.format_name({"L": 3, "E": 1}, SIZES) == "x.7"
    assert merged.placeholders == (("L", "E"),)


def test_labels_are_found_by_their_axes():
    assert Side.parse("{E=up|down}.{L} : D").labels == {"E": ["up", "down"]}


def test_axis_is_restricted_to_some_positions():
    cut = Side.parse("x.{L:02}.w : D").at("L", [1, 10], SIZES)
    assert [name for name, _ in cut.names({"L": 2})] == ["x.01.w", "x.10.w"]


def test_axis_moves_from_the_name_to_the_array():
    side = Side.parse("layers.{L}.w : D").stacked("L", "all")
    assert side == Side.parse("layers.all.w : L D")


@pytest.mark.parametrize("text", ["w", "w: D", "w : D)", "w : (D", "{L : D", "{} : D", "{L-1} : D"])
def test_text_that_is_not_a_side_is_rejected(text):
    with pytest.raises(ValueError, match="is not"):
        Side.parse(text)
