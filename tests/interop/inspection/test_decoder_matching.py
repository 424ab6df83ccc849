"""Tensors are matched to arrays by shape first and by name second."""

import dataclasses

import pytest
from tiny import TINY

from jaxllm.config import PositionConfig, RelativeBuckets
from jaxllm.interop.families import Layout, RuleTable
from jaxllm.interop.families.huggingface.pre_norm.llama import LLAMA
from jaxllm.interop.inspection.decoder_matching import Matcher

D, N, K, H, F = TINY.embed_dim, TINY.num_heads, TINY.num_kv_heads, TINY.head_dim, TINY.mlp_dim


def matcher(shapes, table=None):
    layers = range(TINY.num_layers)
    each = {name.replace("{L}", str(i)): shape for name, shape in shapes.items() for i in layers}
    return Matcher(TINY, each, table or RuleTable((), {}))


def matched(found: Matcher) -> dict[str, tuple[str, ...]]:
    pairs = found.pairs().items()
    return {tensor.name: tuple(target.name for target in targets) for tensor, targets in pairs}


def test_names_decide_among_arrays_of_equal_shape():
    found = matched(matcher({"h.{L}.ffn.w_up": (F, D), "h.{L}.ffn.w_gate": (F, D)}))
    assert found == {
        "h.{L}.ffn.w_up": ("layers.{L}.mlp.up_proj.kernel",),
        "h.{L}.ffn.w_gate": ("layers.{L}.mlp.gate_proj.kernel",),
    }


def test_a_shape_that_fits_nothing_is_not_matched():
    assert matched(matcher({"h.{L}.attn.wq": (D + 1, D)})) == {}


def test_a_fused_tensor_matches_all_its_arrays():
    found = matched(matcher({"h.{L}.attn.qkv": ((N + 2 * K) * H, D)}))
    names = tuple(f"layers.{{L}}.attn.{part}_proj.kernel" for part in "qkv")
    assert found == {"h.{L}.attn.qkv": names}


def test_arrays_and_tensors_with_rules_are_left_out():
    table = LLAMA.table(TINY, Layout())
    name = "model.layers.{L}.self_attn.q_proj.weight"
    found = matcher({name: (N * H, D), "other.{L}": (3,)}, table)
    assert not found.targets
    assert {tensor.name for tensor in found.stored} == {
        f"other.{i}" for i in range(TINY.num_layers)
    }


@pytest.mark.parametrize(
    "positions",
    [
        PositionConfig(kind="learned"),
        PositionConfig(kind="learned", offset=2),
        PositionConfig(kind="distance"),
        PositionConfig(kind="relative", relative=RelativeBuckets(count=12)),
        PositionConfig(kind="rope"),
    ],
)
def test_the_size_of_the_table_of_positions_follows_from_the_config(positions):
    config = dataclasses.replace(TINY, positions=positions)
    found = Matcher(config, {}, RuleTable((), {}))
    values = {axis: eval(text, {"config": config}) for axis, text in found.size_formulas.items()}
    assert values == found.new_sizes
    assert list(values) == ([] if positions.kind == "rope" else ["M"])
