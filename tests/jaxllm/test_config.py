"""A config says everything, refuses what is not a model, and survives a trip through a file."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import TINY

from jaxllm.config import (
    ROPE_SCALINGS,
    DecoderConfig,
    Experts,
    LayerKind,
    RopeScaling,
    from_dict,
    to_dict,
)

LONGROPE = {"kind": "longrope", "factor": 8.0, "short_factor": (1.0,), "long_factor": (2.0,)}


@st.composite
def scalings(draw, pairs: int) -> RopeScaling:
    """Of every kind that a head of so many pairs may have."""
    kinds = {
        name: fields for name, fields in ROPE_SCALINGS.items() if name != "dynamic" or pairs > 1
    }
    kind, low = draw(st.sampled_from([*kinds])), draw(st.floats(0.1, 4))
    factors = st.lists(st.floats(0.5, 90), min_size=pairs, max_size=pairs).map(tuple)
    values = {
        "original_max_len": st.integers(2, 131072),
        "attention_factor": st.none() | st.floats(0.1, 2),
        "low_freq_factor": st.just(low),
        "high_freq_factor": st.floats(low, 12),
        "beta_slow": st.just(low),
        "beta_fast": st.floats(low, 64),
        "truncate": st.booleans(),
        "short_factor": factors,
        "long_factor": factors,
    }
    fields = {name: draw(values[name]) for name in kinds[kind]}
    return RopeScaling(kind=kind, factor=draw(st.floats(1, 64)), **fields)


@st.composite
def configs(draw) -> DecoderConfig:
    groups = draw(st.integers(1, 4))
    kv_heads = draw(st.integers(1, 8))
    pairs = draw(st.integers(1, 128))
    return DecoderConfig(
        vocab_size=draw(st.integers(1, 200000)),
        embed_dim=draw(st.integers(1, 8192)),
        num_layers=draw(st.integers(1, 80)),
        num_heads=groups * kv_heads,
        num_kv_heads=kv_heads,
        head_dim=2 * pairs,
        mlp_dim=draw(st.integers(1, 30000)),
        norm_eps=draw(st.floats(1e-8, 1e-2)),
        rope_theta=draw(st.floats(1e3, 1e7)),
        rope_layout=draw(st.sampled_from(["half", "interleaved"])),
        rope_scaling=draw(st.none() | scalings(pairs)),
        qkv_bias=draw(st.booleans()),
        attn_out_bias=draw(st.booleans()),
        tie_embeddings=draw(st.booleans()),
        param_dtype=draw(st.sampled_from(["float32", "bfloat16", "float16"])),
        remat=draw(st.sampled_from(["none", "dots", "full"])),
    )


@given(configs())
def test_plain_data_and_back(config):
    read = from_dict(json.loads(json.dumps(to_dict(config))))
    assert read == config
    assert hash(read) == hash(config)
    assert type(read.rope_scaling) is type(config.rope_scaling)


def test_a_config_is_frozen_and_a_change_is_another_config():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.num_layers = 2
    changed = dataclasses.replace(TINY, rope_layout="interleaved")
    assert changed != TINY
    assert len({TINY, changed, dataclasses.replace(changed, rope_layout="half")}) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_heads": 6, "num_kv_heads": 4}, ["num_heads=6", "num_kv_heads=4"]),
        ({"head_dim": 7}, ["head_dim=7", "odd"]),
        ({"vocab_size": 0}, ["vocab_size=0"]),
        ({"mlp_dim": -4}, ["mlp_dim=-4"]),
        ({"num_layers": 0}, ["num_layers=0"]),
        ({"num_kv_heads": 0}, ["num_kv_heads=0"]),
        ({"max_len": 0}, ["max_len=0"]),
        ({"rope_layout": "quarter"}, ["rope_layout='quarter'", "half", "interleaved"]),
        ({"init": "zeros"}, ["init='zeros'", "normal", "xavier"]),
        ({"dropout": 1.5}, ["dropout=1.5", "from 0 to below 1"]),
        ({"positions": "absolute"}, ["positions='absolute'", "distance"]),
        ({"remat": "some"}, ["remat='some'", "none", "dots", "full"]),
        ({"dtype": "float64"}, ["dtype='float64'", "bfloat16"]),
        ({"param_dtype": "fp32"}, ["param_dtype='fp32'", "float32"]),
        (
            {"rope_scaling": RopeScaling(kind="dynamic", factor=2.0), "rope_fraction": 0.125},
            ["dynamic", "1 rotated pairs"],
        ),
        (
            {
                "rope_scaling": RopeScaling(
                    kind="longrope", factor=2.0, short_factor=(1.0,), long_factor=(2.0,)
                )
            },
            ["short_factor has 1 numbers", "8 rotated pairs"],
        ),
        ({"rope_fraction": 0.45}, ["head_dim=16", "rope_fraction=0.45", "odd"]),
    ],
)
def test_what_is_no_model_is_refused_with_name_and_value(changes, said):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is examined below
        dataclasses.replace(TINY, **changes)
    assert all(part in str(caught.value) for part in said), caught.value


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_experts": 0}, ["num_experts=0"]),
        ({"top_k": 0}, ["top_k=0"]),
        ({"top_k": 5}, ["top_k=5", "num_experts=4"]),
        ({"mlp_dim": 0}, ["mlp_dim=0"]),
        ({"scores": "tanh"}, ["scores='tanh'", "softmax", "sigmoid"]),
        ({"scale": "both"}, ["scale='both'", "output", "input"]),
        ({"balance": "batch"}, ["balance='batch'", "layer", "model", "kept"]),
    ],
    ids=str,
)
def test_what_are_no_experts_is_refused_with_name_and_value(fields, said):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is examined below
        Experts(**{"num_experts": 4, "top_k": 2, "mlp_dim": 8, **fields})
    assert all(part in str(caught.value) for part in said), caught.value


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pattern": ()}, ["pattern=()"]),
        ({"pattern": (LayerKind(sees="window"),)}, ["'window'", "window is None"]),
        ({"window": 8}, ["window is given", "'window'"]),
        ({"pattern": (LayerKind(mlp="experts"),)}, ["'experts'", "experts is None"]),
        (
            {"experts": Experts(num_experts=4, top_k=2, mlp_dim=8)},
            ["experts is given", "'experts'"],
        ),
    ],
    ids=str,
)
def test_a_pattern_has_all_that_it_needs_and_no_more(changes, said):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is examined below
        dataclasses.replace(TINY, **changes)
    assert all(part in str(caught.value) for part in said), caught.value


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
def test_what_is_no_scaling_is_refused_with_name_and_value(fields, said):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is examined below
        RopeScaling(**fields)
    assert all(part in str(caught.value) for part in said), caught.value


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_layer": 3}, "num_layer"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"embed_dim": 32.5}, "embed_dim"),
        ({"rope_scaling": {"kind": "linear", "factor": 2.0, "factr": 1.0}}, "factr"),
        ({"rope_scaling": {"kind": "linear"}}, "factor"),
        ({"num_heads": 5}, "num_heads=5"),
    ],
)
def test_unknown_missing_and_ill_typed_fields_are_named(changes, named):
    with pytest.raises(ValueError, match=named):
        from_dict(to_dict(TINY) | changes)


def test_all_problems_of_plain_data_are_in_one_error():
    data = to_dict(TINY) | {"num_layer": 3, "vocab_size": "many"}
    del data["mlp_dim"]
    with pytest.raises(ValueError, match=r"(?s)(?=.*num_layer)(?=.*vocab_size)(?=.*mlp_dim)"):
        from_dict(data)
