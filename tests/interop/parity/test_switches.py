"""Parity catches each switch of the architecture that is dropped or set to another value."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatchcase
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from broken_models import configured
from encoder_decoder_cases import CASES as PAIRS
from hf_cases import CASES as DECODERS
from tiers import examples

from jaxllm.config import TemperatureConfig
from jaxllm.interop import load_pretrained
from jaxllm.interop.parity import compare
from jaxllm.interop.parity.alignment.adapters import adapter_of
from jaxllm.interop.parity.alignment.inputs import draw
from jaxllm.layers.attention.attention import Attention
from jaxllm.models import with_scanned_layers

CASES = {**DECODERS, **PAIRS}
NUM_TOKENS = 80  # temperatures rise within them
RISING = {"scale": 0.3, "floor_scale": 64.0}


class Bug(NamedTuple):
    """A bug in a model of a case: other fields of the config, or a function that is replaced."""

    case: str
    place: str  # the first activation that is wrong
    changes: Mapping[str, Any] = {}
    patch: Callable[[], AbstractContextManager[Any]] = nullcontext


def without_head_norms() -> AbstractContextManager[Any]:
    rotate = Attention.normalize_and_rotate
    return mock.patch.object(
        Attention,
        "normalize_and_rotate",
        lambda self, x_BTNH, norm, positions_BT: rotate(self, x_BTNH, None, positions_BT),
    )


def open_gate() -> AbstractContextManager[Any]:
    return mock.patch.object(jax.nn, "sigmoid", jnp.ones_like)


BUGS = {
    "residuals not scaled": Bug("granite", "layers.0.mlp_norm", {"residual_scale": 1.0}),
    "norms not centered": Bug("cohere", "layers.0.attn_norm", {"norms.kind": "rms_float32"}),
    "norms of heads dropped": Bug(
        "cohere/head-norms-biases-untied", "layers.0.attn.q", patch=without_head_norms
    ),
    "gate of the shared expert open": Bug("qwen2_moe", "layers.0.mlp", patch=open_gate),
    "scores not divided by depth": Bug(
        "gpt2/scaled-by-depth", "layers.1.attn.scores", {"attention.scale_by_depth": False}
    ),
    "temperature of the next token": Bug(
        "ministral3",
        "layers.0.attn.q",
        {"attention.temperature": TemperatureConfig(**RISING, layers="all")},
    ),
    "temperature only without RoPE": Bug(
        "ministral3",
        "layers.0.attn.q",
        {"attention.temperature": TemperatureConfig(**RISING, offset=0)},
    ),
    "other layout of partial RoPE": Bug("glm", "layers.0.attn.q", {"rope.layout": "half"}),
    "sines beside their cosines": Bug(
        "marian", "encoder.layers.0.attn.*_proj", {"positions.waves": "power"}
    ),
    "positions from zero": Bug("m2m_100", "encoder.layers.0.attn_norm", {"positions.offset": 0}),
}


@pytest.mark.cases(1, exhaustive=2)
@pytest.mark.parametrize("name", examples(BUGS, "residuals not scaled"))
def test_a_wrong_switch_is_found_at_its_place(name, tmp_path):
    bug = BUGS[name]
    original = CASES[bug.case].build()
    original.save_pretrained(tmp_path)
    model = with_scanned_layers(load_pretrained(tmp_path, dtype="float32"), False)
    adapter = adapter_of(original)
    inputs = draw(model, (), num_tokens=NUM_TOKENS, batch_size=1, seed=0)
    inputs = inputs.replace_token(adapter.padding_token(original), model)
    broken = configured(model, bug.changes) if bug.changes else model
    with bug.patch():
        report = compare(original, broken, inputs, levels=("layers",))
    first = report.first_divergence
    assert first is not None
    assert fnmatchcase(first.path, bug.place), first
    assert compare(original, model, inputs, levels=("layers",)).ok
