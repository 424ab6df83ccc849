"""Layer types are read from the config, or from the defaults where it does not give them."""

import pytest

from jaxllm.config import LayerKind
from jaxllm.interop.families.common.fields import Fields
from jaxllm.interop.families.common.layer_types import (
    read_layer_types,
    read_nope_layers,
    read_qwen_windows,
    shortest_pattern,
)

FULL, SLIDING = "full_attention", "sliding_attention"
ALL, WINDOW = LayerKind(), LayerKind(attention="window")


@pytest.mark.parametrize(
    ("kinds", "pattern"),
    [
        ([ALL] * 4, (ALL,)),
        ([WINDOW, ALL] * 2, (WINDOW, ALL)),
        ([WINDOW, ALL, WINDOW], (WINDOW, ALL)),
        ([ALL, WINDOW, WINDOW], (ALL, WINDOW, WINDOW)),
        ([], ()),
    ],
)
def test_shortest_pattern_finds_the_shortest_repeating_pattern(kinds, pattern):
    assert shortest_pattern(kinds) == pattern


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([FULL], "layer_types has 1 names for 2 layers"),
        ([FULL, "linear"], "layer_types has linear; allowed are full_attention"),
    ],
)
def test_wrong_layer_types_are_reported(given, said):
    fields = Fields({"num_hidden_layers": 2, "layer_types": given})
    assert read_layer_types(fields, [FULL, SLIDING]) == [FULL, SLIDING]
    assert fields.problems[0].startswith(said)


@pytest.mark.parametrize(
    ("given", "window", "pattern"),
    [
        ({}, None, (ALL,)),
        ({"sliding_window": 9}, None, (ALL,)),
        ({"use_sliding_window": True, "sliding_window": 9}, None, (ALL,)),
        (
            {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
            9,
            (ALL, WINDOW, WINDOW),
        ),
        ({"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0}, 9, (WINDOW,)),
    ],
)
def test_qwen_windows_start_at_max_window_layers(given, window, pattern):
    fields = Fields({"num_hidden_layers": 3, **given})
    found = read_qwen_windows(fields)
    assert (found["attention.window"], found["pattern"]) == (window, pattern)
    assert not fields.problems


def test_layers_without_rope_are_listed_or_given_by_an_interval():
    assert read_nope_layers(Fields({}), 8) == {3, 7}
    assert read_nope_layers(Fields({"no_rope_layer_interval": 0}), 8) == set()
    assert read_nope_layers(Fields({"no_rope_layers": [1, 0, 1]}), 3) == {1}
    fields = Fields({"no_rope_layers": [1, 2]})
    read_nope_layers(fields, 3)
    assert fields.problems == ["no_rope_layers=[1, 2] must hold a 0 or 1 for each layer"]
