"""RoPE and kinds of layers are read and written; other layouts and kinds are refused."""

import pytest
from tiny import TINY

from jaxllm.config import LayerKind, with_fields
from jaxllm.interop.families.common.described.rotary import (
    full_attention,
    layer_types,
    rope,
    uniform_window,
)
from jaxllm.interop.families.common.fields import Fields

FULL, SLIDING = "full_attention", "sliding_attention"
WINDOW, NO_ROPE = LayerKind(attention="window"), LayerKind(rope="none")


def every_other(fields, count):
    return [SLIDING if i % 2 else FULL for i in range(count)]


@pytest.mark.parametrize(
    ("fraction", "layout", "expected"),
    [
        (None, "half", {"rope.theta": 500.0, "rope.scaling": None}),
        (
            0.5,
            "interleaved",
            {
                "rope.theta": 500.0,
                "rope.scaling": None,
                "rope.fraction": 0.5,
                "rope.layout": "interleaved",
            },
        ),
    ],
)
def test_rope_has_the_family_s_defaults(fraction, layout, expected):
    part = rope(500.0, fraction=fraction, layout=layout)
    assert part.read(Fields({})) == expected
    config = with_fields(TINY, expected)
    assert part.read(Fields(part.write(config, {}))) == expected
    assert not any(part.unsupported(config).values())


@pytest.mark.parametrize(("fraction", "is_refused"), [(None, False), (1.0, True)])
def test_another_layout_is_refused_where_a_part_may_be_rotated(fraction, is_refused):
    part = rope(fraction=fraction, layout="interleaved")
    assert any(part.unsupported(TINY).values()) is is_refused


def test_layer_types_are_read_or_have_the_default():
    part = layer_types(every_other, 9, {SLIDING: WINDOW, FULL: NO_ROPE})
    config = part.read(Fields({"num_hidden_layers": 4}))
    assert config == {"attention.window": 9, "pattern": (NO_ROPE, WINDOW)}
    given = {"num_hidden_layers": 2, "layer_types": [FULL, FULL], "sliding_window": 5}
    assert part.read(Fields(given)) == {"attention.window": None, "pattern": (NO_ROPE,)}
    model = with_fields(TINY, {"num_layers": 4, **config})
    written = part.write(model, {})
    assert written == {"layer_types": [FULL, SLIDING] * 2, "sliding_window": 9}
    assert not any(part.unsupported(model).values())
    assert any(part.unsupported(TINY).values()), "full attention with RoPE is not of this family"


def test_a_sliding_layer_without_window_is_a_problem():
    fields = Fields({"num_hidden_layers": 2, "sliding_window": None})
    layer_types(every_other, 9).read(fields)
    assert fields.problems == ["layer_types has sliding_attention, but sliding_window is null"]


def test_one_window_for_all_layers():
    part = uniform_window()
    found = part.read(Fields({"num_hidden_layers": 2, "sliding_window": 7}))
    assert found == {"attention.window": 7, "pattern": (WINDOW,)}
    model = with_fields(TINY, found)
    assert part.write(model, {}) == {"sliding_window": 7}
    assert not any(part.unsupported(model).values())
    mixed = with_fields(TINY, {"attention.window": 7, "pattern": (WINDOW, LayerKind())})
    assert any(part.unsupported(mixed).values())


def test_full_attention_refuses_a_window():
    fields = Fields({"num_hidden_layers": 2, "sliding_window": 7, "max_position_embeddings": 64})
    full_attention().read(fields)
    assert fields.problems == ["sliding_window=7 is not supported, only None"]
