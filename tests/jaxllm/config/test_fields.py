"""Configs are created, changed and serialized by the dotted names of their fields."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import CONFIGS
from tiny import TINY

from jaxllm.config import (
    ROPE_SCALINGS,
    AttentionConfig,
    DecoderConfig,
    HeadConfig,
    NormConfig,
    NumericsConfig,
    RopeConfig,
    RopeScaling,
    defaults,
    flatten,
    from_dict,
    make_config,
    to_dict,
    with_fields,
)


@st.composite
def scalings(draw, pairs: int) -> RopeScaling:
    """Scalings of every kind that a head with `pairs` rotated pairs can have."""
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
        norms=NormConfig(eps=draw(st.floats(1e-8, 1e-2))),
        rope=RopeConfig(
            theta=draw(st.floats(1e3, 1e7)),
            layout=draw(st.sampled_from(["half", "interleaved"])),
            scaling=draw(st.none() | scalings(pairs)),
        ),
        attention=AttentionConfig(qkv_bias=draw(st.booleans()), out_bias=draw(st.booleans())),
        head=HeadConfig(tied=draw(st.booleans())),
        numerics=NumericsConfig(
            param_dtype=draw(st.sampled_from(["float32", "bfloat16", "float16"]))
        ),
        remat=draw(st.sampled_from(["none", "dots", "full"])),
    )


@given(configs())
@settings(deadline=None)  # the first example builds the validator
def test_config_round_trips_through_plain_data(config):
    read = from_dict(json.loads(json.dumps(to_dict(config))))
    assert read == config
    assert hash(read) == hash(config)
    assert type(read.rope.scaling) is type(config.rope.scaling)


@given(configs())
def test_config_round_trips_through_dotted_names(config):
    assert make_config(flatten(config)) == config


def test_flatten_and_defaults_cover_all_fields():
    fields, default = flatten(TINY), defaults(DecoderConfig)
    assert (fields["norms.eps"], fields["embed_dim"], fields["experts"]) == (1e-5, 32, None)
    assert fields.keys() - default.keys() == {
        *("vocab_size", "embed_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim"),
        "mlp_dim",
    }
    assert {name for name in default if fields[name] != default[name]} == {"max_len"}


def test_nested_fields_are_changed_by_dotted_names():
    scaling = RopeScaling(kind="linear", factor=2.0)
    changed = with_fields(TINY, {"norms.eps": 1e-3, "rope.scaling": scaling}, num_layers=2)
    assert changed == dataclasses.replace(
        TINY, norms=NormConfig(eps=1e-3), rope=RopeConfig(scaling=scaling), num_layers=2
    )
    again = with_fields(changed, {"rope.scaling.factor": 3.0})
    assert again.rope == RopeConfig(scaling=RopeScaling(kind="linear", factor=3.0))


def test_interdependent_fields_can_be_changed_together():
    changes = {"positions.kind": "learned", "positions.offset": 2, "num_heads": 6}
    changed = with_fields(TINY, changes, num_kv_heads=3)
    assert (changed.positions.offset, changed.num_heads, changed.num_kv_heads) == (2, 6, 3)


def test_with_fields_changes_both_stacks():
    changed = with_fields(CONFIGS["encoder-decoder"], {"norms.eps": 1e-3}, remat="full")
    for stack in (changed.encoder, changed.decoder):
        assert (stack.norms.eps, stack.remat) == (1e-3, "full")


@pytest.mark.parametrize("kind", CONFIGS)
def test_make_config_makes_every_kind_of_model(kind):
    config = CONFIGS[kind]
    values = vars(config) if hasattr(config, "encoder") else flatten(config)
    stacks = {name: flatten(values[name]) for name in ("encoder", "decoder") if name in values}
    assert make_config({**values, **stacks}) == config
    cast = make_config({**values, **stacks}, {"numerics.dtype": "bfloat16"}, remat="full")
    assert cast == with_fields(config, {"numerics.dtype": "bfloat16"}, remat="full")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"norm_eps": 1e-6}, ValueError, r"norm_eps is now norms\.eps"),
        ({"positions": "learned"}, ValueError, r"positions is now positions\.kind"),
        ({"norms.epss": 1e-6}, TypeError, "epss"),
        ({"norm.eps": 1e-6}, TypeError, "norm has no fields eps"),
        (
            {"rope.scaling.factor": 2.0},
            TypeError,
            r"^rope\.scaling has no fields factor: rope\.scaling is None$",
        ),
        ({"norms": {"eps": 1.0}, "norms.eps": 2.0}, ValueError, r"^norms\.eps is given twice$"),
        ({"norms": None}, ValueError, "norms=None is not of type NormConfig"),
        ({"norms": "rms"}, ValueError, "norms='rms' is not of type NormConfig"),
        ({"embed_dim": None}, ValueError, "embed_dim=None is not a whole number"),
        ({"embed_dim": 1.5}, ValueError, r"embed_dim=1\.5 is not a whole number"),
        (
            {"norms": NormConfig(), "norms.eps": 1.0},
            ValueError,
            "norms is given both as a whole and",
        ),
        ({"norms.eps": -1.0}, ValueError, r"norms\.eps=-1\.0 is not positive"),
    ],
)
def test_unknown_and_old_names_are_rejected(changes, error, message):
    with pytest.raises(error, match=message):
        with_fields(TINY, changes)


@pytest.mark.parametrize("kind", ["decoder", "pooled"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norms": {"eps": 1.0}, "norms.eps": 2.0}, r"^norms\.eps is given twice$"),
        ({"norms": "rms"}, "norms='rms' is not of type NormConfig"),
        ({"attention": None}, "attention=None is not of type AttentionConfig"),
        ({5: 1}, "^5 is not a field name: it must be a string$"),
    ],
)
def test_make_config_rejects_repeated_fields_and_wrong_types(kind, changes, message):
    config = {"decoder": TINY, "pooled": CONFIGS["pooled"]}[kind]
    fields = {
        name: value
        for name, value in flatten(config).items()
        if not any(f"{name}.".startswith(f"{new}.") for new in ("norms", "attention"))
    }
    with pytest.raises(ValueError, match=message):
        make_config({**fields, **changes})


def test_make_config_rejects_old_names():
    fields = {**flatten(TINY), "norm_eps": 1e-6, "init": "xavier"}
    with pytest.raises(ValueError, match=r"norm_eps is now norms\.eps; init is now init\.kind"):
        make_config(fields)


def test_configs_are_frozen_and_changes_make_new_ones():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.num_layers = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.norms.eps = 1e-3
    changed = with_fields(TINY, {"rope.layout": "interleaved"})
    assert changed != TINY
    assert len({TINY, changed, with_fields(changed, {"rope.layout": "half"})}) == 2


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_layer": 3}, "num_layer"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"embed_dim": 32.5}, "embed_dim"),
        ({"rope": {"scaling": {"kind": "linear", "factor": 2.0, "factr": 1.0}}}, "factr"),
        ({"rope": {"scaling": {"kind": "linear"}}}, r"^rope\.scaling\.factor is missing$"),
        ({"rope": {"scaling": {}}}, r"(?m)^rope\.scaling\.factor is missing$"),
        ({"num_heads": 5}, "^num_heads=5"),
        ({"num_layers": 10**20}, "num_layers=1000.*exceeds the limit of 10,000"),
        ({"embed_dim": 10**400}, "embed_dim=1000.*exceeds the limit of 2,147,483,647"),
        ({5: 1}, "^5 is not a field name: it must be a string$"),
        ({True: 1}, "^True is not a field name: it must be a string$"),
        ({"norms": {5: 1}}, r"^norms\.5 is not a field name: it must be a string$"),
        ({"pattern": [{5: 1}]}, r"^pattern\.0\.5 is not a field name: it must be a string$"),
    ],
)
def test_unknown_missing_and_ill_typed_fields_are_named(changes, named):
    with pytest.raises(ValueError, match=named):
        from_dict(to_dict(TINY) | changes)


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_data_that_are_no_mapping_are_rejected(data):
    with pytest.raises(ValueError, match=r"^expected a mapping of config fields, found"):
        from_dict(data)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"norms": {"eps": 1e-5}, "norm_eps": 1.0},
            r"^norms\.eps is given twice \(norms\.eps, norm_eps\)$",
        ),
        (
            {"norm_eps": 1.0, "norms": {"eps": 1e-5}},
            r"^norms\.eps is given twice \(norm_eps, norms\.eps\)$",
        ),
        (
            {"norms.eps": 1e-5, "norm_eps": 1e-5},
            r"^norms\.eps is given twice \(norms\.eps, norm_eps\)$",
        ),
        ({"norms": "x", "norm_eps": 1.0}, "^norms is given both as a whole and by its fields"),
        ({"norm_eps": 1.0, "norms": "x"}, "^norms is given both as a whole and by its fields"),
        (
            {"rope_scaling": {"factor": 2.0}, "rope": {"scaling": {"factor": 2.0}}},
            r"^rope\.scaling\.factor is given twice",
        ),
        (
            {"encoder": {"norm_eps": 1.0, "norms": {"eps": 1.0}}, "decoder": {}},
            r"^encoder\.norms\.eps is given twice \(encoder\.norm_eps, encoder\.norms\.eps\)$",
        ),
    ],
)
def test_a_field_given_twice_is_rejected(given, message):
    rest = {name: value for name, value in to_dict(TINY).items() if name not in ("norms", "rope")}
    with pytest.raises(ValueError, match=message):
        from_dict({**rest, **given})


def test_one_error_lists_all_problems_of_plain_data():
    data = to_dict(TINY) | {"num_layer": 3, "vocab_size": "many"}
    del data["mlp_dim"]
    with pytest.raises(
        ValueError, match=r"(?s)(?=.*num_layer)(?=.*vocab_size)(?=.*mlp_dim)"
    ) as caught:
        from_dict(data)
    assert len(str(caught.value).splitlines()) == 3
