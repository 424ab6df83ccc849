"""`compare` on correct models, which always pass, and on wrong ones. Bugs: test_mutations.py."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tiers import examples, exhaustive

from jaxllm.config import with_fields
from jaxllm.interop import load_pretrained
from jaxllm.interop.parity import compare as compare_all
from jaxllm.interop.parity.progress import following
from jaxllm.layers.attention import attention
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
CORRECT = {
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
    """A Llama and the JAX model with its weights and unstacked layers. Not to be changed."""
    llama, folder = make_llama(), tmp_path_factory.mktemp("llama")
    llama.save_pretrained(folder)
    return llama, with_scanned_layers(load_pretrained(folder, dtype="float32"), False)


@pytest.mark.cases(0, exhaustive=1)
@pytest.mark.parametrize("name", exhaustive(CORRECT))
def test_correct_models_pass(make_llama, convert, tokens, name):
    llama = make_llama(**CORRECT[name])
    report = compare(llama, convert(llama), tokens)
    assert report.ok, report.first_divergence
    assert report.first_divergence is None
    assert report.verdicts == {"logits": True, "layers": True}


def interleave(x):
    """Moves the elements of each rotated pair next to each other, from half a head apart."""
    return x.reshape(*x.shape[:-1], 2, -1).mT.reshape(x.shape)


@pytest.mark.exhaustive
def test_a_correct_model_in_the_other_rope_layout_passes(make_llama, convert, tokens):
    llama = make_llama(attention_bias=True)
    model = convert(llama)
    arrays = parameters(model)
    rotated = [name for name in arrays if "q_proj" in name or "k_proj" in name]
    arrays |= {name: interleave(arrays[name]) for name in rotated}
    config = with_fields(model.config, {"rope.layout": "interleaved"})
    report = compare(llama, with_arrays(build_abstract(config), arrays), tokens)
    assert report.ok, report.first_divergence


@pytest.mark.cases(1, exhaustive=2)
@pytest.mark.parametrize("std", [0.02, 0.3])
@pytest.mark.parametrize("seed", examples(range(4), 0))
def test_no_false_alarms(make_llama, convert, tokens, seed, std):
    llama = make_llama(seed, std)
    report = compare(llama, convert(llama), tokens)
    assert max(tap.ratio for tap in report.taps) < 0.75, "too close to a false alarm"
    assert report.logits.top1_unexplained == 0


def parameters(model):
    return {name: variable.get_value() for name, variable in named_parameters(model).items()}


def swap(one: str, other: str):
    """A bug: two parameters are swapped."""

    def bug(model):
        arrays = parameters(model)
        return with_arrays(model, {**arrays, one: arrays[other], other: arrays[one]})

    return bug


def configure(changes):
    """A bug: a field of the config is wrong; the weights are right."""

    def bug(model):
        return with_arrays(build_abstract(with_fields(model.config, changes)), parameters(model))

    return bug


def tie(model):
    """A bug: the head is tied to the embeddings although it has weights of its own."""
    arrays = parameters(model)
    del arrays["lm_head.kernel"]
    config = with_fields(model.config, {"head.tied": True})
    return with_arrays(build_abstract(config), arrays)


def window_off_by_one(q_BTNH, k_BSKH, v_BSKH, mask_BTS, *args, **options):
    """Attention whose last query does not attend to the first key."""
    if q_BTNH.shape[1] == 320 % attention.MIN_BLOCK:
        mask_BTS = mask_BTS.at[:, -1, 0].set(False)
    return CORRECT_ATTENTION(q_BTNH, k_BSKH, v_BSKH, mask_BTS, *args, **options)


def tiled_heads(q_BTNH, k_BSKH, v_BSKH, *args, **options):
    G = q_BTNH.shape[2] // k_BSKH.shape[2]
    k_BSNH, v_BSNH = (jnp.tile(x, (1, 1, G, 1)) for x in (k_BSKH, v_BSKH))
    return CORRECT_ATTENTION(q_BTNH, k_BSNH, v_BSNH, *args, **options)


CORRECT_ATTENTION = attention.attention


@pytest.mark.cases(0, exhaustive=1)
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("wrong", "hint"),
    examples(
        [
            (window_off_by_one, "mask: causal in the reference, a window of 319 in the model"),
            (tiled_heads, "k/v heads tiled instead of repeated"),
        ],
        (tiled_heads, "k/v heads tiled instead of repeated"),
    ),
)
def test_wrong_attention_is_caught(pair, tokens, monkeypatch, wrong, hint):
    llama, model = pair
    monkeypatch.setattr(attention, "attention", wrong)
    first = compare(llama, model, tokens).first_divergence
    assert first.path == "layers.0.attn.scores"
    assert hint in first.hint


@pytest.mark.exhaustive
def test_wrong_frequencies_barely_show_at_the_first_tokens(pair, tokens):
    llama, model = pair
    buckets = compare(llama, configure({"rope.theta": 10200.0})(model), tokens).buckets
    assert [bucket.start for bucket in buckets] == [0, 4, 32, 128]
    assert [bucket.tokens for bucket in buckets] == [8, 56, 192, 384]
    assert buckets[0].kl_max < buckets[1].kl_max / 10 < buckets[-1].kl_max / 10


@pytest.mark.exhaustive
def test_activations_before_a_bug_agree(pair, tokens):
    llama, model = pair
    bug = swap("layers.1.mlp.gate_proj.kernel", "layers.1.mlp.up_proj.kernel")
    taps = compare(llama, bug(model), tokens).taps
    at = [tap.path for tap in taps].index("layers.1.mlp.gate_proj")
    assert all(tap.ok for tap in taps[:at])
    assert not any(tap.ok for tap in taps[at:] if "norm" not in tap.path)


@pytest.mark.exhaustive
def test_rows_are_in_execution_order(pair, tokens):
    llama, model = pair
    paths = [tap.path for tap in compare(llama, model, tokens).taps]
    assert paths[:3] == ["embed", "layers.0.attn_norm", "layers.0.attn.q_proj"]
    assert paths[-3:] == ["layers.2", "final_norm", "lm_head"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("levels", [("logits",), ("layers",)])
def test_logits_and_layers_can_be_compared_separately(pair, tokens, levels):
    llama, model = pair
    report = compare(llama, tie(model), tokens, levels=levels)
    assert report.verdicts == {levels[0]: levels == ("layers",)}
    outputs = [tap.path for tap in report.taps if tap.is_output]
    assert outputs == (["embed.attend"] if levels == ("logits",) else [])
    assert report.logits.kl_max > 0.1


@pytest.mark.exhaustive
def test_a_model_with_remat_passes(make_llama, convert, tokens):
    llama = make_llama()
    model = convert(llama)
    model.config = dataclasses.replace(model.config, remat="full")
    assert compare(llama, model, tokens).ok


def test_compare_changes_neither_model(make_llama, convert, tokens):
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


def test_invalid_levels_inputs_and_dtypes_are_rejected(make_llama, convert, tokens):
    llama = make_llama()
    model = convert(llama)
    with pytest.raises(ValueError, match=r"levels=.* one of weights, config, logits, layers"):
        compare(llama, model, tokens, levels=("logits", "layer"))
    with pytest.raises(ValueError, match="it must be integers"):
        compare(llama, model, tokens.astype(np.float32))
    with pytest.raises(ValueError, match="it must be integers"):
        compare(llama, model, tokens[0])
    with pytest.raises(ValueError, match="ids from 0 to 96; the vocabulary has 0 to 95"):
        compare(llama, model, np.arange(97)[None])
    with pytest.raises(ValueError, match="the model computes in dtype='bfloat16'"):
        compare(llama, configure({"numerics.dtype": "bfloat16"})(model), tokens)
    with pytest.raises(ValueError, match='in bfloat16: load the model with dtype="bfloat16"'):
        compare(make_llama().bfloat16(), model, tokens)
    with pytest.raises(ValueError, match="float64; they must be in one dtype of float32, float16"):
        compare(make_llama().double(), model, tokens)


@pytest.mark.exhaustive
def test_only_the_wrong_activations_fail_on_their_own(pair, tokens):
    """Activations after a bug have a large cumulative error but a small error of their own."""
    llama, model = pair
    bug = swap("layers.1.mlp.gate_proj.kernel", "layers.1.mlp.up_proj.kernel")
    taps = {tap.path: tap for tap in compare(llama, bug(model), tokens).taps}
    wrong = {path for path, tap in taps.items() if tap.is_wrong_itself}
    assert wrong == {"layers.1.mlp.gate_proj", "layers.1.mlp.up_proj"}
    after = [path for path in taps if path.startswith("layers.2.") or path == "lm_head"]
    assert all(not taps[path].cumulative.ok and taps[path].forced.ok for path in after)
    assert all(tap.forced.floor <= tap.forced.threshold for tap in taps.values())


@pytest.mark.exhaustive
def test_every_wrong_activation_fails_on_its_own(pair, tokens):
    llama, model = pair
    broken = configure({"rope.theta": 10200.0})(model)
    wrong = {tap.path for tap in compare(llama, broken, tokens).taps if tap.is_wrong_itself}
    assert wrong == {f"layers.{i}.attn.{name}" for i in range(3) for name in "qk"}


@pytest.mark.exhaustive
def test_an_error_below_the_accumulated_noise_is_found(pair, tokens):
    llama, model = pair
    arrays = parameters(model)
    scale = "layers.2.mlp_norm.scale"
    broken = with_arrays(model, {**arrays, scale: arrays[scale] * (1 + 1.5e-6)})
    report = compare(llama, broken, tokens)
    first = report.first_divergence
    assert first.path == "layers.2.mlp_norm"
    assert first.cumulative.ok
    assert not first.forced.ok
    assert first.measured == first.forced.relative_l2
    assert not report.verdicts["layers"]


SIZES = {
    "layers": {"num_hidden_layers": 2},
    "width": {"hidden_size": 48},
    "vocabulary": {"vocab_size": 97},
    "mlp": {"intermediate_size": 40},
    "heads": {"num_key_value_heads": 4},
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_different_sizes_are_reported_without_computing_anything(make_llama, pair, tokens, sizes):
    _, model = pair
    levels = ("weights", "config", "logits", "layers", "gradients", "generate")
    report = compare_all(make_llama(**sizes), model, tokens, levels=levels)
    assert report.verdicts == dict.fromkeys(levels, False)
    assert report.unjudged == levels[2:]
    assert report.taps == ()
    fields = [row.path for row in report.config if not row.ok]
    assert report.first_divergence.path == fields[0]
    assert any("in the reference" in r.remark or "has no" in r.remark for r in report.weights)
    [alone] = compare_all(make_llama(**sizes), model, tokens, levels=("layers",)).verdicts.items()
    assert alone == ("layers", False)


def test_suspect_rows_are_decided_by_more_draws(pair, tokens):
    """A mistake of the size of rounding: equal, then decided by more draws, then certain."""
    llama, model = pair
    arrays, name = parameters(model), "layers.0.mlp.up_proj.kernel"
    decided, verdicts = [], []
    for strength in 2.0 ** np.arange(-24, -18):
        changed = with_arrays(model, {**arrays, name: arrays[name] * (1 + strength)})
        runs = []
        with following(lambda run, total, runs=runs: runs.append((run, total))):
            report = compare(llama, changed, tokens[:, :64])
        decided.append("activations: reference with simulated rounding, 20 of 20" in dict(runs))
        verdicts.append(report.ok)
        assert not any(row.is_suspect for row in report.taps)
        assert len(runs) == runs[-1][1], "progress ends at its total"
    assert verdicts[0] is True
    assert verdicts[-1] is False
    assert any(decided)
    assert not decided[-1], "what is certain needs no more draws"


@pytest.mark.exhaustive
def test_a_reference_runs_once_for_several_models(pair, tokens):
    llama, model = pair
    recordings, runs = {}, []
    levels = ("layers", "logits", "step", "generate")
    first = compare(llama, model, tokens[:, :32], levels=levels, recordings=recordings)
    with following(lambda run, total: runs.append(run)):
        again = compare(llama, model, tokens[:, :32], levels=levels, recordings=recordings)
        assert runs == ["activations: model", "training: model", "generation: model"]
        other = compare(llama, model, tokens[:, 1:33], levels=levels, recordings=recordings)
    assert len(recordings) == 6
    assert again.rows == first.rows
    assert all(other.rows[level] != first.rows[level] for level in levels)
