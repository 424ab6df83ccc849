"""Invalid stack configs are rejected; the message names each field and its value."""

import pytest
from tiny import TINY

from jaxllm.config import ExpertsConfig, LayerKind, RopeScaling, with_fields


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_heads": 6, "num_kv_heads": 4}, ["num_heads=6", "num_kv_heads=4"]),
        ({"head_dim": 7}, ["head_dim=7", "odd"]),
        ({"vocab_size": 0}, ["vocab_size=0"]),
        ({"mlp_dim": -4}, ["mlp_dim=-4"]),
        ({"num_layers": 0}, ["num_layers=0"]),
        ({"num_layers": 1001, "scan_layers": False}, ["num_layers=1001", "scan_layers to true"]),
        ({"num_kv_heads": 0}, ["num_kv_heads=0"]),
        ({"max_len": 0}, ["max_len=0"]),
        ({"rope.layout": "quarter"}, ["rope.layout='quarter'", "half", "interleaved"]),
        ({"init.kind": "zeros"}, ["init.kind='zeros'", "normal", "xavier"]),
        ({"dropout": 1.5}, ["dropout=1.5", "at least 0 and below 1"]),
        ({"positions.kind": "absolute"}, ["positions.kind='absolute'", "distance"]),
        ({"remat": "some"}, ["remat='some'", "none", "dots", "full"]),
        ({"numerics.dtype": "float64"}, ["numerics.dtype='float64'", "bfloat16"]),
        ({"numerics.param_dtype": "fp32"}, ["numerics.param_dtype='fp32'", "float32"]),
        (
            {"rope.scaling": RopeScaling(kind="dynamic", factor=2.0), "rope.fraction": 0.125},
            ["dynamic", "2 or more rotated pairs, not 1"],
        ),
        (
            {
                "rope.scaling": RopeScaling(
                    kind="longrope", factor=2.0, short_factor=(1.0,), long_factor=(2.0,)
                )
            },
            ["short_factor has 1 numbers", "8 rotated pairs"],
        ),
        ({"norms.eps": float("nan")}, ["norms.eps=nan", "finite"]),
        ({"embed_scale": float("inf")}, ["embed_scale=inf", "finite"]),
        ({"rope.fraction": 0.45}, ["head_dim=16", "rope.fraction=0.45", "odd"]),
    ],
)
def test_invalid_stack_is_rejected_with_field_name_and_value(changes, said):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is examined below
        with_fields(TINY, changes)
    assert all(part in str(caught.value) for part in said), caught.value


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pattern": ()}, ["pattern=()"]),
        ({"pattern": (LayerKind(attention="window"),)}, ["'window'", "attention.window is None"]),
        ({"attention.window": 8}, ["attention.window is given", "'window'"]),
        ({"pattern": (LayerKind(mlp="experts"),)}, ["'experts'", "experts is None"]),
        (
            {"experts": ExpertsConfig(num_experts=4, top_k=2, mlp_dim=8)},
            ["experts is given", "'experts'"],
        ),
    ],
    ids=str,
)
def test_pattern_needs_exactly_the_settings_that_its_layers_use(changes, said):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is examined below
        with_fields(TINY, changes)
    assert all(part in str(caught.value) for part in said), caught.value
