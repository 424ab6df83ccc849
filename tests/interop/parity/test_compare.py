"""Honest models always pass; every injected bug is caught, at the step where it is."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxllm.interop import load_pretrained
from jaxllm.interop.parity import compare as compare_all
from jaxllm.layers import attention
from jaxllm.models import build_abstract, with_scanned_layers
from jaxllm.params import named_parameters, with_arrays

compare = functools.partial(compare_all, levels=("logits", "layers"))

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
HONEST = {
    "grouped-query": {},
    "multi-head": {"num_key_value_heads": 4},
    "multi-query, wide heads": {"num_key_value_heads": 1, "head_dim": 24},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "llama3 rope": {"rope_parameters": LLAMA3_ROPE},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    "deep": {"num_hidden_layers": 8},
}


@pytest.fixture(scope="module")
def pair(make_llama, tmp_path_factory):
    """A Llama and ours with its weights, layers one by one; not to be changed."""
    llama, folder = make_llama(), tmp_path_factory.mktemp("llama")
    llama.save_pretrained(folder)
    return llama, with_scanned_layers(load_pretrained(folder, dtype="float32"), False)


@pytest.mark.parametrize("config", HONEST.values(), ids=HONEST)
def test_honest_models_pass(make_llama, convert, tokens, config):
    llama = make_llama(**config)
    report = compare(llama, convert(llama), tokens)
    assert report.ok, report.first_divergence
    assert report.first_divergence is None
    assert report.verdicts == {"logits": True, "layers": True}


def interleave(x):
    """A head's pairs side by side instead of half a head apart."""
    return x.reshape(*x.shape[:-1], 2, -1).mT.reshape(x.shape)


def test_the_other_rope_layout_passes(make_llama, convert, tokens):
    llama = make_llama(attention_bias=True)
    model = convert(llama)
    arrays = parameters(model)
    rotated = [name for name in arrays if "q_proj" in name or "k_proj" in name]
    arrays |= {name: interleave(arrays[name]) for name in rotated}
    config = dataclasses.replace(model.config, rope_layout="interleaved")
    report = compare(llama, with_arrays(build_abstract(config), arrays), tokens)
    assert report.ok, report.first_divergence


@pytest.mark.parametrize("std", [0.02, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_no_false_alarms(make_llama, convert, tokens, seed, std):
    llama = make_llama(seed, std)
    report = compare(llama, convert(llama), tokens)
    assert max(tap.ratio for tap in report.taps) < 0.75, "too close to an alarm"
    assert report.logits.top1_unexplained == 0


def parameters(model):
    return {name: variable.get_value() for name, variable in named_parameters(model).items()}


def swap(one: str, other: str):
    """A bug: two parameters are mixed up."""

    def bug(model):
        arrays = parameters(model)
        return with_arrays(model, {**arrays, one: arrays[other], other: arrays[one]})

    return bug


def change(name: str, function):
    """A bug: one parameter is wrong."""

    def bug(model):
        arrays = parameters(model)
        return with_arrays(model, {**arrays, name: function(arrays[name])})

    return bug


def configure(**changes):
    """A bug: the weights are right, but a field of the config is wrong."""

    def bug(model):
        return with_arrays(
            build_abstract(dataclasses.replace(model.config, **changes)), parameters(model)
        )

    return bug


def tie(model):
    """A bug: the head is taken from the embeddings though it has weights of its own."""
    arrays = parameters(model)
    del arrays["lm_head.kernel"]
    config = dataclasses.replace(model.config, tie_embeddings=True)
    return with_arrays(build_abstract(config), arrays)


def half_precision(array):
    return array.astype(jnp.bfloat16).astype(jnp.float32)


K_PROJ, V_PROJ = "layers.0.attn.k_proj.kernel", "layers.0.attn.v_proj.kernel"
BUGS = {
    "gate and up swapped": (
        swap("layers.1.mlp.gate_proj.kernel", "layers.1.mlp.up_proj.kernel"),
        "layers.1.mlp.gate_proj",
    ),
    "norms swapped": (
        swap("layers.2.attn_norm.scale", "layers.2.mlp_norm.scale"),
        "layers.2.attn_norm",
    ),
    "layers swapped": (
        swap("layers.1.attn.o_proj.kernel", "layers.2.attn.o_proj.kernel"),
        "layers.1.attn.o_proj",
    ),
    "eps x 10": (configure(norm_eps=1e-4), "layers.0.attn_norm"),
    "theta x 1.02": (configure(rope_theta=10200.0), "layers.0.attn.q"),
    "rope layout": (configure(rope_layout="interleaved"), "layers.0.attn.q_proj"),
    "k heads permuted": (change(K_PROJ, lambda k_DKH: k_DKH[:, ::-1]), "layers.0.attn.k_proj"),
    "k pairs not reordered": (
        change(K_PROJ, interleave),
        "layers.0.attn.k_proj",
    ),
    "v heads permuted": (change(V_PROJ, lambda v_DKH: v_DKH[:, ::-1]), "layers.0.attn.v_proj"),
    "mlp rounded to bfloat16": (
        change("layers.2.mlp.down_proj.kernel", half_precision),
        "layers.2.mlp.down_proj",
    ),
    "final norm shifted": (change("final_norm.scale", lambda scale: scale - 1), "final_norm"),
    "a norm scale off by 1e-4": (
        change("final_norm.scale", lambda scale: scale.at[3].multiply(1 + 1e-4)),
        "final_norm",
    ),
    "head tied": (tie, "lm_head"),
    "one logit off": (
        change("lm_head.kernel", lambda head_DV: head_DV.at[:, 5].multiply(1.001)),
        "lm_head",
    ),
    "a token's embedding": (
        change("embed.embedding", lambda table_VD: table_VD.at[7, 0].add(1e-3)),
        "embed",
    ),
    "not a number": (
        change("layers.1.attn_norm.scale", lambda scale: scale.at[0].set(jnp.nan)),
        "layers.1.attn_norm",
    ),
}


@pytest.mark.parametrize(("bug", "path"), BUGS.values(), ids=BUGS)
def test_bugs_are_caught_where_they_are(pair, tokens, bug, path):
    llama, model = pair
    report = compare(llama, bug(model), tokens)
    first = report.first_divergence
    assert not report.ok
    assert not report.verdicts["logits"]
    assert first.path == path
    assert not first.measured <= first.threshold
    assert first.floor < first.threshold
    assert report.verdicts["layers"] == (path == "lm_head")


def window_off_by_one(q_BTNH, k_BTKH, v_BTKH, positions_BT, segment_ids_BT, **_):
    T = q_BTNH.shape[1]
    mask_TS = jnp.tril(jnp.ones((T, T), bool)) & ~jnp.tril(jnp.ones((T, T), bool), -(T - 1))
    return attention.attention(q_BTNH, k_BTKH, v_BTKH, mask_TS[None])


def tiled_heads(q_BTNH, k_BTKH, v_BTKH, positions_BT, segment_ids_BT, **_):
    B, T, N, H = q_BTNH.shape
    mixed = q_BTNH.reshape(B, T, N // 2, 2, H).swapaxes(2, 3).reshape(B, T, N, H)
    mask_TS = jnp.tril(jnp.ones((T, T), bool))
    return attention.attention(mixed, k_BTKH, v_BTKH, mask_TS[None])


@pytest.mark.parametrize("wrong", [window_off_by_one, tiled_heads])
def test_wrong_attention_is_caught(pair, tokens, monkeypatch, wrong):
    llama, model = pair
    monkeypatch.setattr(attention, "self_attention", wrong)
    assert compare(llama, model, tokens).first_divergence.path == "layers.0.attn.mixed"


def test_wrong_frequencies_hide_in_the_first_tokens(pair, tokens):
    llama, model = pair
    buckets = compare(llama, configure(rope_theta=10200.0)(model), tokens).buckets
    assert [bucket.start for bucket in buckets] == [0, 4, 32, 128]
    assert [bucket.tokens for bucket in buckets] == [8, 56, 192, 384]
    assert buckets[0].kl_max < buckets[1].kl_max / 10 < buckets[-1].kl_max / 10


def test_before_a_bug_nothing_differs(pair, tokens):
    llama, model = pair
    bug, path = BUGS["gate and up swapped"]
    taps = compare(llama, bug(model), tokens).taps
    at = [tap.path for tap in taps].index(path)
    assert all(tap.ok for tap in taps[:at])
    assert not any(tap.ok for tap in taps[at:] if "norm" not in tap.path)


def test_the_rows_are_in_execution_order(pair, tokens):
    llama, model = pair
    paths = [tap.path for tap in compare(llama, model, tokens).taps]
    assert paths[:3] == ["embed", "layers.0.attn_norm", "layers.0.attn.q_proj"]
    assert paths[-3:] == ["layers.2", "final_norm", "lm_head"]


@pytest.mark.parametrize("levels", [("logits",), ("layers",)])
def test_levels_alone(pair, tokens, levels):
    llama, model = pair
    report = compare(llama, tie(model), tokens, levels=levels)
    assert report.verdicts == {levels[0]: levels == ("layers",)}
    assert ("lm_head" in [tap.path for tap in report.taps]) == (levels == ("logits",))
    assert report.logits.kl_max > 0.1


def test_remat_changes_nothing(make_llama, convert, tokens):
    llama = make_llama()
    model = convert(llama)
    model.config = dataclasses.replace(model.config, remat="full")
    assert compare(llama, model, tokens).ok


def test_both_models_are_left_as_they_were(make_llama, convert, tokens):
    llama = make_llama()
    model = convert(llama)
    before = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    llama.set_attn_implementation("sdpa")
    llama.train()
    compare(llama, model, tokens)
    assert all(torch.equal(before[name], tensor) for name, tensor in llama.state_dict().items())
    assert llama.config._attn_implementation == "sdpa"
    assert all(module.training for module in llama.modules())
    assert not any(module._forward_hooks for module in llama.modules())
    assert model.config.scan_layers


def test_what_cannot_be_compared_is_refused(make_llama, convert, tokens):
    llama = make_llama()
    model = convert(llama)
    with pytest.raises(ValueError, match=r"levels=.* are not of weights, config, logits, layers"):
        compare(llama, model, tokens, levels=("logits", "layer"))
    with pytest.raises(ValueError, match="not integers"):
        compare(llama, model, tokens.astype(np.float32))
    with pytest.raises(ValueError, match="not integers"):
        compare(llama, model, tokens[0])
    with pytest.raises(ValueError, match="tokens from 0 to 96 are not in the vocabulary of 96"):
        compare(llama, model, np.arange(97)[None])
    with pytest.raises(ValueError, match="dtype='bfloat16' of the model"):
        compare(llama, configure(dtype="bfloat16")(model), tokens)
    with pytest.raises(ValueError, match=r"torch.bfloat16; parity is judged in float32"):
        compare(make_llama().bfloat16(), model, tokens)
    with pytest.raises(ValueError, match=r"the reference has no model\.layers\.2"):
        compare(make_llama(num_hidden_layers=2), model, tokens)
    with pytest.raises(ValueError, match=r"mlp of the reference|\(2, 320, 48\)"):
        compare(make_llama(hidden_size=48), model, tokens)
    with pytest.raises(ValueError, match=r"lm_head of the reference is \(2, 320, 97\)"):
        compare(make_llama(vocab_size=97), model, tokens)
