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

from jaxllm.interop import load_pretrained
from jaxllm.interop.parity import compare
from jaxllm.interop.parity.alignment.adapters import adapter_of
from jaxllm.interop.parity.alignment.inputs import draw
from jaxllm.layers.attention.attention import Attention
from jaxllm.models import with_scanned_layers

CASES = {**DECODERS, **PAIRS}
NUM_TOKENS = 80


class Bug(NamedTuple):
    """A bug in a model of a case: other fields of the config, or a function that is replaced."""

    case: str
    place: str  # the first activation that is wrong
    changes: Mapping[str, Any] = {}
    patch: Callable[[], AbstractContextManager[Any]] = nullcontext


def open_gate() -> AbstractContextManager[Any]:
    return mock.patch.object(jax.nn, "sigmoid", jnp.ones_like)


def without_sinks() -> AbstractContextManager[Any]:
    return mock.patch.object(Attention, "sink_scores", None)


BUGS = {
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


@pytest.mark.parametrize("name", examples(BUGS, "scores not divided by depth", "sinks dropped"))
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
