"""Unsupported values are named with the config's value, and flagged only if it has them."""

import pytest
from tiny import TINY

from jaxllm.config import with_fields
from jaxllm.interop.families.common.unsupported import (
    unsupported_by_equal_heads,
    unsupported_by_head_dim,
    unsupported_by_one_bias,
    unsupported_values,
)


def test_values_other_than_the_only_one_are_named():
    supported = {"norms.kind": "layer", "mlp.gated": True, "num_layers": 3}
    found = unsupported_values(TINY, supported)
    assert found == {"norms.kind='rms'": True, "mlp.gated=True": False, "num_layers=3": False}


def test_a_field_that_no_config_has_is_an_error():
    with pytest.raises(KeyError, match=r"norms\.knid"):
        unsupported_values(TINY, {"norms.knid": "layer"})


@pytest.mark.parametrize(
    ("qkv", "out", "is_uneven"),
    [(True, True, False), (False, False, False), (True, False, True), (False, True, True)],
)
def test_one_field_of_biases_is_about_all_projections(qkv, out, is_uneven):
    config = with_fields(TINY, {"attention.qkv_bias": qkv, "attention.out_bias": out})
    assert list(unsupported_by_one_bias(config).values()) == [is_uneven]


@pytest.mark.parametrize(("head_dim", "is_own"), [(8, False), (16, True), (4, True)])
def test_heads_that_share_the_width_have_no_width_of_their_own(head_dim, is_own):
    """32 of 4 heads."""
    [(named, found)] = unsupported_by_head_dim(with_fields(TINY, head_dim=head_dim)).items()
    assert found == is_own
    assert f"head_dim={head_dim}" in named


@pytest.mark.parametrize(("kv_heads", "head_dim"), [(4, 8), (2, 8), (4, 16), (1, 16)])
def test_equal_heads_are_as_many_of_keys_as_of_queries(kv_heads, head_dim):
    config = with_fields(TINY, num_kv_heads=kv_heads, head_dim=head_dim)
    found = unsupported_by_equal_heads(config)
    assert list(found.values()) == [kv_heads != 4, head_dim != 8]
    assert any(f"num_kv_heads={kv_heads}" in named for named in found)
