"""MLP widths are computed from multiples and multipliers, and the reverse."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxllm.interop.families.meta.params_json import mlp_width, width_fields


@pytest.mark.parametrize(
    ("dim", "multiple_of", "multiplier", "width"),
    [(4096, 256, None, 11008), (8192, 4096, 1.3, 28672), (4096, 1024, 1.3, 14336)],
)
def test_widths_match_the_released_models(dim, multiple_of, multiplier, width):
    """Llama 2 7B, Llama 3 70B and 8B."""
    assert mlp_width(dim, multiple_of, multiplier, thirds=True) == width


@given(st.integers(1, 2**15), st.integers(1, 2**17), st.booleans())
def test_any_width_can_be_written(dim, width, thirds):
    config = SimpleNamespace(embed_dim=dim, mlp_dim=width)
    said = width_fields(config, {}, thirds_with_multiplier=thirds)
    multiplier = said["ffn_dim_multiplier"]
    cut = multiplier is None or thirds
    assert mlp_width(dim, said["multiple_of"], multiplier, thirds=cut) == width


def test_original_width_fields_are_kept_if_they_fit():
    config = SimpleNamespace(embed_dim=4096, mlp_dim=14336)
    base = {"multiple_of": 1024, "ffn_dim_multiplier": 1.3}
    assert width_fields(config, base, thirds_with_multiplier=True) == base
