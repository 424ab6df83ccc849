"""Invalid configs of positions, RoPE and its scaling are rejected by full field name."""

import pytest

from jaxllm.config import PositionConfig, RelativeBuckets, RopeConfig, RopeScaling

LONGROPE = {"kind": "longrope", "factor": 8.0, "short_factor": (1.0,), "long_factor": (2.0,)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "absolute"}, "positions.kind='absolute' is not one of rope, .*distance"),
        ({"waves": "sine"}, "positions.waves='sine' is not one of power, exp"),
        ({"kind": "learned", "offset": -1}, "positions.offset=-1 is negative"),
        (
            {"offset": 2},
            "positions.offset=2 is for positions.kind='learned' or 'sinusoidal', not 'rope'",
        ),
        ({"kind": "relative"}, "positions.relative=None with positions.kind='relative'"),
        ({"relative": RelativeBuckets()}, "positions.relative=.* with positions.kind='rope'"),
    ],
)
def test_invalid_positions_are_rejected(fields, message):
    with pytest.raises(ValueError, match=message):
        PositionConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layout": "quarter"}, "rope.layout='quarter' is not one of half, interleaved"),
        ({"theta": 0.0}, "rope.theta=0.0 is not positive"),
        ({"local_theta": -1.0}, "rope.local_theta=-1.0 is not positive"),
        ({"theta": float("inf")}, "rope.theta=inf is not a finite number"),
        ({"fraction": float("nan")}, "rope.fraction=nan is not a finite number"),
        ({"fraction": 0.0}, "rope.fraction=0.0 must be above 0 and at most 1"),
        ({"fraction": 1.5}, "rope.fraction=1.5 must be above 0 and at most 1"),
    ],
)
def test_invalid_rope_is_rejected(fields, message):
    with pytest.raises(ValueError, match=message):
        RopeConfig(**fields)


@pytest.mark.parametrize(
    ("head_dim", "rope", "message"),
    [
        (7, RopeConfig(), "head_dim=7 is odd, but RoPE rotates pairs"),
        (16, RopeConfig(fraction=0.01), "head_dim=16 times rope.fraction=0.01 is less than 1"),
        (16, RopeConfig(fraction=0.45), "head_dim=16 times rope.fraction=0.45 is odd"),
        (
            16,
            RopeConfig(fraction=0.125, scaling=RopeScaling(kind="dynamic", factor=2.0)),
            "rope.scaling.kind='dynamic' needs 2 or more rotated pairs, not 1",
        ),
        (
            16,
            RopeConfig(scaling=RopeScaling(**LONGROPE)),
            "rope.scaling.short_factor has 1 numbers for 8 rotated pairs",
        ),
    ],
)
def test_rope_that_does_not_fit_the_head_is_rejected(head_dim, rope, message):
    with pytest.raises(ValueError, match=message):
        rope.check_head(head_dim)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "ntk", "factor": 2.0}, ["ntk", "linear", "llama3", "yarn"]),
        ({"kind": "linear", "factor": 0.5}, ["factor=0.5"]),
        (
            {"kind": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0},
            ["high_freq_factor=1.0", "low_freq_factor=4.0"],
        ),
        (
            {"kind": "yarn", "factor": 8.0, "beta_fast": 1.0, "beta_slow": 2.0},
            ["beta_fast=1.0", "beta_slow=2.0"],
        ),
        ({"kind": "yarn", "factor": 8.0, "attention_factor": 0.0}, ["attention_factor=0.0"]),
        (
            {"kind": "linear", "factor": 8.0, "original_max_len": 64},
            ["original_max_len=64", "kind='linear'"],
        ),
        (
            {"kind": "llama3", "factor": 8.0, "truncate": False},
            ["truncate=False", "kind='llama3'"],
        ),
        ({"kind": "longrope", "factor": 8.0}, ["short_factor has 0", "long_factor 0"]),
        ({**LONGROPE, "long_factor": (1.0, 2.0)}, ["short_factor has 1", "long_factor 2"]),
        ({**LONGROPE, "long_factor": (0.0,)}, ["not positive"]),
        ({**LONGROPE, "original_max_len": 1}, ["original_max_len=1"]),
    ],
    ids=str,
)
def test_invalid_scaling_is_rejected_with_field_name_and_value(fields, said):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is examined below
        RopeScaling(**fields)
    assert all(part in str(caught.value) for part in said), caught.value
