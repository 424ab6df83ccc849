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
from jaxllm.layers.delta import layer, rule
from jaxllm.layers.delta.convolution import Convolution
from jaxllm.layers.delta.layer import GatedDeltaNet
from jaxllm.layers.delta.rule import Tokens, delta_rule
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


def with_growing_state() -> AbstractContextManager[Any]:
    """The sign of the decay is lost, within what does not overflow."""
    decay = GatedDeltaNet.decay
    return mock.patch.object(
        GatedDeltaNet, "decay", lambda self, x: jnp.minimum(-decay(self, x), 1)
    )


def without_decay_bias() -> AbstractContextManager[Any]:
    def decay(self, x_BTN):
        return -jnp.exp(self.decay_rate[...]) * jax.nn.softplus(x_BTN)

    return mock.patch.object(GatedDeltaNet, "decay", decay)


def with_other_tokens(change: Callable[[Tokens], Tokens]) -> AbstractContextManager[Any]:
    """The delta rule gets something else."""
    wrong = lambda tokens, state: delta_rule(change(tokens), state)  # noqa: E731
    return mock.patch.object(layer, "delta_rule", wrong)


def without_beta() -> AbstractContextManager[Any]:
    return with_other_tokens(
        lambda tokens: tokens._replace(beta_BTN=jnp.ones_like(tokens.beta_BTN))
    )


def with_heads_in_another_order() -> AbstractContextManager[Any]:
    """Each head of values is served by the key of another."""
    return with_other_tokens(lambda tokens: tokens._replace(k_BTNH=tokens.k_BTNH[:, :, ::-1]))


def without_unit_length() -> AbstractContextManager[Any]:
    return mock.patch.object(layer, "unit_length", lambda x: x.astype(jnp.float32))


def with_state_of_its_chunk() -> AbstractContextManager[Any]:
    """The state is not carried from chunk to chunk."""
    chunk = rule._chunk

    def forgetful(memory, tokens):
        return chunk(memory._replace(state_BNHW=jnp.zeros_like(memory.state_BNHW)), tokens)

    return mock.patch.object(rule, "_chunk", forgetful)


def with_shifted_convolution() -> AbstractContextManager[Any]:
    """Each token sees those before it, but not itself."""
    call = Convolution.__call__

    def shifted(self, x_BTKH, runs_BT, before_BCKH):
        late_BTKH = jnp.pad(x_BTKH, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]
        return call(self, late_BTKH, runs_BT, before_BCKH)

    return mock.patch.object(Convolution, "__call__", shifted)


def without_output_gate() -> AbstractContextManager[Any]:
    return mock.patch.object(GatedDeltaNet, "gated", lambda self, out, gate: self.norm(out))


def open_gate_of_attention() -> AbstractContextManager[Any]:
    call = Attention.__call__

    def without(self, *args):
        with open_gate():
            return call(self, *args)

    return mock.patch.object(Attention, "__call__", without)


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
    "sign of the decay": Bug("qwen3_next", "layers.0.attn.decay", patch=with_growing_state),
    "bias of the decay dropped": Bug("qwen3_next", "layers.0.attn.decay", patch=without_decay_bias),
    "beta dropped": Bug("qwen3_next", "layers.0.attn.mixed", patch=without_beta),
    "keys of other heads": Bug(
        "qwen3_next", "layers.0.attn.mixed", patch=with_heads_in_another_order
    ),
    "keys not of unit length": Bug("qwen3_next", "layers.0.attn.mixed", patch=without_unit_length),
    "state dropped between chunks": Bug(
        "qwen3_next", "layers.0.attn.mixed", patch=with_state_of_its_chunk
    ),
    "convolution shifted": Bug("qwen3_next", "layers.0.attn.q", patch=with_shifted_convolution),
    "gate of the delta rule dropped": Bug(
        "qwen3_next", "layers.0.attn.o_proj", patch=without_output_gate
    ),
    "gate of attention open": Bug(
        "qwen3_next", "layers.3.attn.o_proj", patch=open_gate_of_attention
    ),
    "whole heads rotated": Bug("qwen3_next", "layers.3.attn.q", {"rope.fraction": 1.0}),
    "norms not around zero": Bug("qwen3_next", "layers.0.attn_norm", {"norms.kind": "rms_float32"}),
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
