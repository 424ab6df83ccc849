"""Latent attention in a file: sizes and the factor of scores go both ways or are refused."""

import math

import pytest
from tiny import TINY

from jaxllm.config import LatentConfig, RopeScaling, with_fields
from jaxllm.interop.families.common.described.latent import (
    find_mscale,
    latent_axes,
    latent_rope,
    latent_rules,
    latent_sizes,
    predicting_layers,
    read_width,
    score_scale,
)
from jaxllm.interop.families.common.fields import Fields

LATENT = LatentConfig(kv_rank=20, query_rank=24, rope_dim=6, value_dim=10)
CONFIG = with_fields(TINY, {"num_kv_heads": TINY.num_heads, "attention.latent": LATENT})
YARN = RopeScaling(kind="yarn", factor=40.0, original_max_len=64, attention_factor=1.0)


def test_sizes_go_both_ways():
    part = latent_sizes(64)
    written = part.write(CONFIG, {"head_dim": 6})
    assert (written["qk_nope_head_dim"], written["qk_rope_head_dim"]) == (10, 6)
    assert written["head_dim"] == 6
    assert "qk_head_dim" not in written
    fields = Fields(written)
    found = part.read(fields)
    assert not fields.problems
    assert with_fields(TINY, found) == CONFIG


def test_other_heads_and_norms_are_refused():
    fields = Fields({**latent_sizes(64).write(CONFIG, {}), "num_key_value_heads": 2})
    latent_sizes(64).read(fields)
    assert any("num_key_value_heads=2 is not supported" in one for one in fields.problems)
    unsupported = latent_sizes(64).unsupported
    assert unsupported(TINY) == {"attention.latent=None": True}
    other = with_fields(CONFIG, {"attention.latent.norm_eps": 1e-5})
    assert unsupported(other) == {"attention.latent.norm_eps=1e-05": True}


def test_a_width_has_the_usual_parts():
    assert read_width(Fields({})) == 192
    assert read_width(Fields({"qk_nope_head_dim": 3, "qk_rope_head_dim": 4})) == 7


@pytest.mark.parametrize("mscale", [1.0, 0.707, 0.7, 1 / 3])
def test_the_factor_of_scores_goes_both_ways(mscale):
    scale = score_scale(16, 40.0, mscale)
    assert scale == pytest.approx((0.1 * mscale * math.log(40) + 1) ** 2 / 4, rel=1e-14)
    config = with_fields(CONFIG, {"rope.scaling": YARN, "attention.scale": scale})
    part, names = latent_rope(), {"qk_nope_head_dim": 10, "qk_rope_head_dim": 6}
    assert not any(part.unsupported(config).values())
    written = part.write(config, {})
    assert written["rope_scaling"]["mscale_all_dim"] == pytest.approx(mscale, rel=1e-12)
    again = part.read(Fields({**written, **names}))
    assert again["attention.scale"] == scale
    assert again["rope.scaling"] == YARN


def test_other_factors_and_layouts_are_refused():
    other = with_fields(CONFIG, {"attention.scale": 0.3})
    assert find_mscale(other) is None
    assert latent_rope().unsupported(other)["attention.scale=0.3"]
    assert latent_rope(is_interleaved=True).unsupported(CONFIG)["rope.layout='half'"]


def test_queries_without_a_latent_have_one_projection():
    plain = with_fields(CONFIG, {"attention.latent.query_rank": None})
    names = [
        {rule.stored.name.rpartition("self_attn.")[2] for rule in latent_rules(one)}
        for one in (CONFIG, plain)
    ]
    assert names[0] - names[1] == {"q_a_proj.weight", "q_a_layernorm.weight", "q_b_proj.weight"}
    assert names[1] - names[0] == {"q_proj.weight"}
    assert latent_axes(CONFIG) == {"Q": 24, "P": 20, "p": 26, "U": 20, "W": 10}


def test_only_layers_with_their_own_projection_predict_further_tokens():
    names = ["model.layers.4.eh_proj.weight", "model.layers.3.mlp.gate.weight", "eh_proj.weight"]
    assert [*predicting_layers(names)] == ["*layers.4.*"]
