"""Parity catches each switch of the architecture that is dropped or set to another value."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatchcase
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from broken_models import arrays_of, configured
from encoder_decoder_cases import CASES as PAIRS
from hf_cases import CASES as DECODERS
from tiers import examples

from jaxllm.interop import load_pretrained
from jaxllm.interop.parity import compare
from jaxllm.interop.parity.alignment.adapters import adapter_of
from jaxllm.interop.parity.alignment.inputs import draw
from jaxllm.layers.attention.attention import Attention
from jaxllm.layers.attention.latent import LatentAttention
from jaxllm.layers.experts import moe
from jaxllm.models import with_scanned_layers
from jaxllm.params import with_arrays

CASES = {**DECODERS, **PAIRS}
NUM_TOKENS = 80


class Bug(NamedTuple):
    """A bug in a model of a case: other fields of the config, or a function that is replaced."""

    case: str
    place: str  # the first activation that is wrong
    changes: Mapping[str, Any] = {}
    swapped: tuple[str, ...] = ()  # names of two parameters
    patch: Callable[[], AbstractContextManager[Any]] = nullcontext


def open_gate() -> AbstractContextManager[Any]:
    return mock.patch.object(jax.nn, "sigmoid", jnp.ones_like)


def without_sinks() -> AbstractContextManager[Any]:
    return mock.patch.object(Attention, "sink_scores", None)


def without_correction() -> AbstractContextManager[Any]:
    route = moe.route
    return mock.patch.object(moe, "route", lambda experts, logits, bias: route(experts, logits))


def with_rotated_part_first() -> AbstractContextManager[Any]:
    """Keys begin with what is rotated, where queries end with it."""
    expand = LatentAttention.expand

    def swapped(self, x_BTKH):
        k_BTNH, v_BTNH = expand(self, x_BTKH)
        parts = k_BTNH[..., self.unrotated :], k_BTNH[..., : self.unrotated]
        return jnp.concatenate(parts, axis=-1), v_BTNH

    return mock.patch.object(LatentAttention, "expand", swapped)


LATENT_NORMS = tuple(f"layers.{i}.attn.kv_norm.scale" for i in (0, 1))

BUGS = {
    "correction of experts dropped": Bug("deepseek_v3", "layers.1.mlp", patch=without_correction),
    "groups of experts dropped": Bug("deepseek_v3", "layers.1.mlp", {"experts.groups": None}),
    "groups by their best expert": Bug(
        "deepseek_v3", "layers.1.mlp", {"experts.groups.score": "best"}
    ),
    "weights of experts not scaled": Bug(
        "deepseek_v2", "layers.1.mlp", {"experts.weight_scale": 1.0}
    ),
    "latent norms swapped": Bug("deepseek_v3", "layers.0.attn.kv_norm", swapped=LATENT_NORMS),
    "rotated part of latent attention swapped": Bug(
        "deepseek_v3", "layers.0.attn.scores", patch=with_rotated_part_first
    ),
    "pairs of latent attention": Bug(
        "deepseek_v3", "layers.0.attn.scores", {"rope.layout": "half"}
    ),
    "factor of yarn's scores dropped": Bug(
        "deepseek_v3", "layers.0.attn.scores", {"attention.scale": None}
    ),
    "sinks dropped": Bug("gpt_oss", "layers.0.attn.mixed", patch=without_sinks),
    "gate not clamped": Bug(
        "gpt_oss/irregular-tied-unscaled", "layers.0.mlp", {"mlp.clamp.limit": 100.0}
    ),
    "gate with another slope": Bug("gpt_oss", "layers.0.mlp", {"mlp.clamp.alpha": 1.0}),
    "gate of another kind": Bug("gpt_oss", "layers.0.mlp", {"mlp.clamp": None}),
    "blend of yarn at whole pairs": Bug(
        "gpt_oss", "layers.0.attn.q", {"rope.scaling.truncate": True}
    ),
    "gate of the shared expert open": Bug("qwen2_moe", "layers.0.mlp", patch=open_gate),
    "scores not divided by depth": Bug(
        "gpt2/scaled-by-depth", "layers.1.attn.scores", {"attention.scale_by_depth": False}
    ),
}


@pytest.mark.parametrize("name", examples(BUGS, "sinks dropped"))
def test_a_wrong_switch_is_found_at_its_place(name, tmp_path):
    bug = BUGS[name]
    original = CASES[bug.case].build()
    original.save_pretrained(tmp_path)
    model = with_scanned_layers(load_pretrained(tmp_path, dtype="float32"), False)
    adapter = adapter_of(original)
    inputs = draw(model, (), num_tokens=NUM_TOKENS, batch_size=1, seed=0)
    inputs = inputs.replace_token(adapter.padding_token(original), model)
    broken = configured(model, bug.changes) if bug.changes else model
    if bug.swapped:
        arrays, (one, other) = arrays_of(model), bug.swapped
        broken = with_arrays(model, {**arrays, one: arrays[other], other: arrays[one]})
    with bug.patch():
        report = compare(original, broken, inputs, levels=("layers",))
    first = report.first_divergence
    assert first is not None
    assert fnmatchcase(first.path, bug.place), first
    assert compare(original, model, inputs, levels=("layers",)).ok
