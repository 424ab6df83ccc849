"""Gated DeltaNet goes both ways: its sizes, which layers have it, and fused projections."""

import numpy as np
import pytest
from tiny import TINY

from jaxllm.config import DeltaConfig, LayerKind, with_fields
from jaxllm.interop.families.common.decoder_axes import decoder_sizes
from jaxllm.interop.families.common.described.delta import (
    delta_axes,
    delta_rules,
    fused_inputs,
    gated_attention_rules,
    read_attentions,
    separate_inputs,
    unsupported_kinds,
    write_attentions,
)
from jaxllm.interop.families.common.fields import Fields
from jaxllm.interop.rules.binding import fused_parts

DELTA = DeltaConfig(num_heads=6, num_key_heads=3, key_dim=8, value_dim=10, conv_size=2)
LAYERS = (LayerKind(attention="delta"), LayerKind())
CONFIG = with_fields(
    TINY,
    {
        **{"attention.delta": DELTA, "attention.gated": True, "attention.qk_norm": "head"},
        **{"pattern": LAYERS, "num_layers": 2},
    },
)


def test_every_fourth_layer_has_attention_unless_the_file_says_otherwise():
    kinds, delta = read_attentions(Fields({"num_hidden_layers": 8}))
    assert kinds == ["delta", "delta", "delta", "full"] * 2
    usual = {"num_heads": 32, "num_key_heads": 16, "key_dim": 128, "value_dim": 128}
    assert delta == DeltaConfig(**usual, conv_size=4)
    given = {"num_hidden_layers": 4, "full_attention_interval": 2}
    assert read_attentions(Fields(given))[0] == ["delta", "full"] * 2
    kinds, delta = read_attentions(Fields({"num_hidden_layers": 1, "full_attention_interval": 1}))
    assert (kinds, delta) == (["full"], None)


def test_an_impossible_interval_and_sizes_are_named():
    fields = Fields({"num_hidden_layers": 2, "full_attention_interval": 0})
    read_attentions(fields)
    assert fields.problems == ["full_attention_interval=0 is less than 1"]
    fields = Fields({"num_hidden_layers": 2, "linear_num_value_heads": 3})
    assert read_attentions(fields)[1] is None
    assert "num_heads=3 is not a multiple of num_key_heads=16" in fields.problems[0]


def test_what_is_written_is_read_again():
    written = write_attentions(CONFIG, {})
    assert written["layer_types"] == ["linear_attention", "full_attention"]
    fields = Fields({"num_hidden_layers": 2, **written})
    assert read_attentions(fields) == (["delta", "full"], DELTA)
    assert not fields.problems


def test_windows_and_layers_without_rope_have_no_name():
    assert not unsupported_kinds(CONFIG)
    kinds = (LayerKind(attention="window"), LayerKind(attention="delta", rope="none"))
    other = with_fields(CONFIG, {"pattern": kinds, "attention.window": 4})
    assert [*unsupported_kinds(other)] == [
        "layers with attention='delta' and rope='none'",
        "layers with attention='window' and rope='global'",
    ]


@pytest.mark.parametrize("inputs", [fused_inputs, separate_inputs], ids=["fused", "separate"])
def test_rules_cover_the_layers_of_their_kind_and_cut_fused_rows(inputs):
    sizes = {**decoder_sizes(CONFIG), **delta_axes(CONFIG)}
    stacks = {"layers": {"0": range(1), "1": range(1, 2)}}
    rules = [*delta_rules(CONFIG, inputs()), *gated_attention_rules(CONFIG)]
    bound = [one for rule in rules for one in rule.bound(sizes, stacks)]
    names = {name for one in bound for name, _ in one.stored()}
    assert all(("linear_attn" in name) == ("layers.0." in name) for name in names)
    rows = {
        whole: [shape[0] for shape in parts.values()] for whole, parts in fused_parts(bound).items()
    }
    prefix = "model.layers.0.linear_attn."
    assert rows[f"{prefix}conv1d.weight"] == [24, 24, 60]
    assert rows["model.layers.1.self_attn.q_proj.weight"] == [16] * (2 * TINY.num_heads)
    if inputs is fused_inputs:
        assert rows[f"{prefix}in_proj_qkvz.weight"] == [8, 8, 20, 20] * 3
        assert rows[f"{prefix}in_proj_ba.weight"] == [2, 2] * 3
    else:
        assert rows[f"{prefix}in_proj_qkv.weight"] == [24, 24, 60]
    assert np.prod([delta_axes(CONFIG)[axis] for axis in "QgW"]) == 60
