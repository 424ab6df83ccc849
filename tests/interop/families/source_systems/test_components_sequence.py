"""The components' models of one sequence beside the reference: every attention, and experts."""

from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from components_family import (
    CROWDED,
    DENSE,
    LAYERS,
    MOE,
    ROOMY,
    TOLERANCE,
    ComponentsFamily,
)
from source_cases import write_fields
from tiny import relative_l2

from jaxllm.config import SequenceConfig, make_config
from jaxllm.generation import beam_search, generate
from jaxllm.interop import load_pretrained
from jaxllm.interop.families.common.fields import Fields
from jaxllm.interop.families.source_systems.components_sequence import (
    COMPONENTS_AUTOREGRESSIVE,
    COMPONENTS_REGRESSION,
)
from jaxllm.models import with_window

DEPTH = {"num_layers": 3}
REGRESSION, AUTOREGRESSIVE = "components-regression", "components-autoregressive"
SWITCHES = {
    "": {},
    "/mqa": {"attention_type": "mqa", "ffn_config": {**DENSE, "use_moe": False}},
    "/gqa": {"attention_type": "gqa", "use_kv_cache": False},
    "/both-ways": {"attention_type": "gqa", "num_groups": 2, "apply_causal_mask": False},
    "/one-group": {"attention_type": "gqa", "num_groups": 1, "apply_causal_mask": True},
    "/one-expert-full": {"ffn_config": {**MOE, "capacity": 20, "topk": 1}},
    "/one-expert": {"attention_type": "gqa", "ffn_config": {**MOE, "capacity": ROOMY, "topk": 1}},
    "/two-experts-full": CROWDED,
    "/two-experts": {"attention_type": "gqa", "ffn_config": {**MOE, "capacity": ROOMY, "topk": 2}},
}


def cases_of(model_type: str, *names: str) -> dict[str, dict]:
    return {model_type + name: {**LAYERS, **DEPTH, **SWITCHES[name]} for name in names}


class TestAutoregressive(ComponentsFamily):
    cases = cases_of(AUTOREGRESSIVE, *SWITCHES)
    lengths = (160,)
    sizes = DEPTH


class TestRegression(ComponentsFamily):
    """It is made of the same layers."""

    cases = cases_of(REGRESSION, "", "/both-ways", "/one-expert-full")
    lengths = (160,)
    sizes = DEPTH


def read(family, **fields: object) -> SequenceConfig:
    given = Fields({"model_type": family.name, **LAYERS, **DEPTH, **fields})
    values, _ = family.read_config(given, {})
    assert given.finish() == []
    return make_config(values)


def test_a_mean_needs_no_mask_and_the_next_token_does():
    assert not read(COMPONENTS_REGRESSION).attention.causal
    assert read(COMPONENTS_AUTOREGRESSIVE).attention.causal
    masked = read(COMPONENTS_REGRESSION, apply_causal_mask=True)
    assert masked.attention.causal
    assert COMPONENTS_REGRESSION.write_config(masked, {})["apply_causal_mask"] is True


def test_neither_is_written_as_the_other():
    pair = COMPONENTS_REGRESSION, COMPONENTS_AUTOREGRESSIVE
    for family, other, pooled in zip(pair, pair[::-1], (True, False), strict=True):
        config = read(family)
        assert config.pooled == pooled
        assert family.write_config(config, {})["model_type"] == family.model_type
        with pytest.raises(ValueError, match=f"pooled={pooled}"):
            other.write_config(config, {})


def load(folder: Path, **switches: object):
    fields = {"model_type": AUTOREGRESSIVE, **LAYERS, **DEPTH, **switches}
    return write_fields(fields, folder), load_pretrained(folder)


@pytest.mark.parametrize("attention", ["mha", "mqa", "gqa"])
def test_a_sliding_window_is_that_of_the_reference(attention, tmp_path):
    """Which calls it `expanding_context=False`; its window is as long as its positions."""
    reference, model = load(tmp_path, attention_type=attention, max_seq_len=16)
    x = np.random.default_rng(1).standard_normal((2, 50, 3)).astype(np.float32)
    with torch.no_grad():
        expected = reference(torch.tensor(x), expanding_context=False).numpy()
    found = with_window(model, 16)(x).logits
    assert relative_l2(found, expected) <= TOLERANCE


def test_the_next_token_is_that_of_the_reference(tmp_path):
    reference, model = load(tmp_path)
    x = np.random.default_rng(1).standard_normal((2, 9, 3)).astype(np.float32)
    with torch.no_grad():
        expected = reference.generate_next_token(torch.tensor(x)).numpy()
    assert expected.shape == (2, 1, 5)
    assert relative_l2(model.generate_next_token(x), expected) <= TOLERANCE
    padded = np.concatenate([x, np.full((2, 4, 3), 7, np.float32)], axis=1)
    segment_ids = (np.arange(13) < 9)[None].repeat(2, 0).astype(np.int32)
    found = model.generate_next_token(padded, segment_ids=jnp.asarray(segment_ids))
    assert relative_l2(found, expected) <= TOLERANCE


def test_vectors_are_no_prompt(tmp_path):
    _, model = load(tmp_path)
    for search in (generate, partial(beam_search, num_beams=2)):
        with pytest.raises(ValueError, match="a SequenceModel has no vocabulary"):
            search(model, [[1]], 3)
