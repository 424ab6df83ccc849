"""Rules have the parameters that a config says: of norms, biases, and fused projections."""

import pytest
from tiny import TINY

from jaxllm.config import with_fields
from jaxllm.interop.families.common.described.rules import (
    OUTPUT,
    attention_rules,
    fused_gated_mlp_rules,
    fused_qkv_rules,
    grouped_qkv_rules,
    mlp_rules,
    norm_rules,
)

BIASED = with_fields(
    TINY, {"attention.qkv_bias": True, "attention.out_bias": True, "mlp.bias": True}
)


def sides(rules):
    return {rule.stored.text: rule.model.text for rule in rules}


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("rms", {"weight": "scale"}),
        ("layer", {"weight": "scale", "bias": "bias"}),
        ("layer_unbiased", {"weight": "scale"}),
        ("layer_bare", {}),
    ],
)
def test_norms_have_the_parameters_of_their_kind(kind, parameters):
    rules = norm_rules(with_fields(TINY, {"norms.kind": kind}), {"final_norm": "ln_f"})
    assert sides(rules) == {
        f"ln_f.{theirs} : D": f"final_norm.{ours} : D" for theirs, ours in parameters.items()
    }


def test_projections_have_biases_if_the_config_says_so():
    plain, biased = (
        sides(attention_rules(config, "h.{L}.attn", names=OUTPUT)) for config in (TINY, BIASED)
    )
    assert plain.items() < biased.items()
    assert plain["h.{L}.attn.out_proj.weight : D (N H)"] == "layers.{L}.attn.o_proj.kernel : N H D"
    assert biased["h.{L}.attn.k_proj.bias : (K H)"] == "layers.{L}.attn.k_proj.bias : K H"
    assert len(sides(mlp_rules(BIASED, "h.{L}.", "up", "down"))) == 4


def test_fused_projections_are_divided():
    each = sides(fused_qkv_rules(BIASED, "h.{L}.qkv"))
    part = "layers.{L}.attn.{P=q|k|v}_proj"
    assert each == {
        "h.{L}.qkv.weight : (N P H) D": f"{part}.kernel : D N H",
        "h.{L}.qkv.bias : (N P H)": f"{part}.bias : N H",
    }
    grouped = sides(grouped_qkv_rules(TINY, "h.{L}.qkv"))
    assert grouped == {
        "h.{L}.qkv.weight#{K}q : (g H) D": "layers.{L}.attn.q_proj.kernel : D (K g) H",
        "h.{L}.qkv.weight#{K}k : H D": "layers.{L}.attn.k_proj.kernel : D K H",
        "h.{L}.qkv.weight#{K}v : H D": "layers.{L}.attn.v_proj.kernel : D K H",
    }
    gated = sides(fused_gated_mlp_rules("h.{L}.mlp"))
    assert "h.{L}.mlp.gate_up_proj.weight : (G F) D" in gated
