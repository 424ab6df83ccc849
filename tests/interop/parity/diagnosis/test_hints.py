"""Known mistakes are recognized in models that make them."""

import jax.numpy as jnp
import numpy as np
import pytest
from hf_cases import CASES, tokens_of
from tiers import examples
from wrong_activations import B, D, T, drawn, hint

from jaxllm.config import with_fields
from jaxllm.interop import load_pretrained
from jaxllm.interop.parity import compare
from jaxllm.layers.attention import attention
from jaxllm.models import build_abstract, with_scanned_layers
from jaxllm.params import named_parameters, with_arrays


def test_wrong_experts_are_recognized():
    ours, router = drawn(B, T, D), drawn(B, T, 4)
    given = {"layers.0.mlp.router": router}
    off = router.argmax(-1) == 2
    theirs = np.where(off[..., None], drawn(B, T, D, seed=3), ours)
    assert "the tokens of expert 2 differ" in hint("layers.0.mlp", ours, theirs, reference=given)
    ratio = np.random.default_rng(0).random((B, T, 1), np.float32) + 0.5
    assert "weights of the experts' outputs" in hint(
        "layers.0.mlp", ours, ratio * ours, reference=given
    )
    other = drawn(B, T, D, seed=4)
    assert "The router agrees" in hint("layers.0.mlp", ours, other, reference=given)


def test_nan_is_counted():
    ours = drawn(B, T, D)
    ours[0, 3] = np.nan
    assert hint("embed", ours, drawn(B, T, D)) == "12 of 576 numbers of the model are NaN"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model of transformers, its JAX model and tokens, by family. Not to be changed."""
    return {name: _pair(name, tmp_path_factory) for name in ("llama", "gemma2", "mixtral")}


def _pair(name, folders):
    original, folder = CASES[name].build(), folders.mktemp(name)
    original.save_pretrained(folder)
    model = with_scanned_layers(load_pretrained(folder, dtype="float32"), False)
    return original, model, tokens_of(original, batch_size=1)[:, :130]


def parameters(model):
    return {name: variable.get_value() for name, variable in named_parameters(model).items()}


def configured(changes):
    def change(model):
        config = with_fields(model.config, changes)
        return with_arrays(build_abstract(config), parameters(model))

    return change


def swapped(one, other):
    def change(model):
        arrays = parameters(model)
        return with_arrays(model, {**arrays, one: arrays[other], other: arrays[one]})

    return change


def altered(name, function):
    def change(model):
        arrays = parameters(model)
        return with_arrays(model, {**arrays, name: function(arrays[name])})

    return change


REAL = {
    "llama theta": ("llama", configured({"rope.theta": 3e4}), "layers.0.attn.q", "different theta"),
    "llama eps": ("llama", configured({"norms.eps": 1e-4}), "layers.0.attn_norm", "different eps"),
    "llama layout": (
        *("llama", configured({"rope.layout": "interleaved"}), "layers.0.attn.q_proj"),
        "half/interleaved",
    ),
    "llama scale": (
        *("llama", configured({"attention.scale": 0.5}), "layers.0.attn.scores"),
        "0.5 times the model's",
    ),
    "llama activation": (
        *("llama", configured({"mlp.activation": "gelu"}), "layers.0.mlp.down_proj"),
        "a different activation: the reference uses silu",
    ),
    "llama swapped layers": (
        "llama",
        swapped("layers.1.mlp.up_proj.kernel", "layers.2.mlp.up_proj.kernel"),
        *("layers.1.mlp.up_proj", "the reference uses layers.2"),
    ),
    "llama key heads": (
        *("llama", altered("layers.2.attn.k_proj.kernel", lambda k_DKH: k_DKH[:, ::-1])),
        *("layers.2.attn.k_proj", "heads in a different order"),
    ),
    "gemma2 window": (
        *("gemma2", configured({"attention.window": 71}), "layers.0.attn.scores"),
        "a window of 70 in the reference, a window of 71 in the model",
    ),
    "gemma2 cap": (
        *("gemma2", configured({"attention.softcap": None}), "layers.0.attn.scores"),
        "soft cap: the reference is capped at",
    ),
    "gemma2 norm": (
        *("gemma2", configured({"norms.kind": "rms_float32"}), "layers.0.attn_norm"),
        "norm +1: the reference scales by one more",
    ),
    "gemma2 embedding": ("gemma2", configured({"embed_scale": 1.0}), "embed", "(sqrt(embed_dim))"),
    "mixtral norm": (
        "mixtral",
        swapped("layers.1.attn_norm.scale", "layers.1.mlp_norm.scale"),
        *("layers.1.attn_norm", "swapped norms: the reference uses layers.1.mlp_norm.scale"),
    ),
    "mixtral expert": (
        "mixtral",
        altered("layers.1.mlp.down_proj.kernel", lambda k_EFD: k_EFD.at[-1].multiply(1.5)),
        *("layers.1.mlp", "the tokens of expert"),
    ),
}


@pytest.mark.cases(0, exhaustive=5)
@pytest.mark.parametrize("case", examples(REAL, "llama theta"))
def test_a_bug_in_a_model_is_recognized(models, case):
    family, bug, path, words = REAL[case]
    reference, model, tokens_BT = models[family]
    report = compare(reference, bug(model), tokens_BT, levels=("layers",))
    first = report.first_divergence
    assert first.path == path
    assert words in first.hint


def test_softmax_in_half_precision_is_recognized(models, monkeypatch):
    reference, model, tokens_BT = models["llama"]
    original = attention.jax.nn.softmax
    monkeypatch.setattr(
        attention.jax.nn,
        "softmax",
        lambda x, axis=-1: original(x.astype(jnp.bfloat16), axis=axis).astype(x.dtype),
    )
    first = compare(reference, model, tokens_BT, levels=("layers",)).first_divergence
    assert first.path == "layers.0.attn.probs"
    assert "softmax in bfloat16 in the model" in first.hint
