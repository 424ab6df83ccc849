"""Axis sizes follow from the config, and the order of a rotated head from its RoPE layout."""

import pytest
from tiny import TINY

from jaxllm.config import ExpertsConfig, LayerKind, with_fields
from jaxllm.interop.families.common.decoder_axes import decoder_sizes, head_pairs


def test_a_head_is_half_as_many_pairs():
    sizes = decoder_sizes(TINY)
    assert sizes["r"] * sizes["h"] == sizes["H"] == TINY.head_dim
    assert sizes["N"] == TINY.num_heads
    assert "E" not in sizes


def test_experts_add_their_axes():
    experts = ExpertsConfig(num_experts=4, top_k=2, mlp_dim=24)
    sizes = decoder_sizes(with_fields(TINY, pattern=(LayerKind(mlp="experts"),), experts=experts))
    assert (sizes["E"], sizes["X"], sizes["S"]) == (4, 24, 0)


@pytest.mark.parametrize(("layout", "axes"), [("half", "(r h)"), ("interleaved", "(h r)")])
def test_rotated_heads_are_ordered_by_layout(layout, axes):
    assert head_pairs(with_fields(TINY, {"rope.layout": layout})) == axes
