"""Training levels: gradients, an optimizer step, a loss curve, and their noise floors."""

import jax
import numpy as np
import optax
import pytest
from hf_cases import CASES, tokens_of
from mutants.training import adamw
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxllm.interop import load_pretrained
from jaxllm.interop.parity import compare
from jaxllm.interop.parity.both_sides import open_both
from jaxllm.interop.parity.checkpoint import InputOptions
from jaxllm.interop.parity.execution import jax_train
from jaxllm.interop.parity.execution.recipe import Recipe, TrainingRecord
from jaxllm.interop.parity.levels.sides import Comparison
from jaxllm.interop.parity.levels.training import (
    ELEMENTS,
    LATER_TOKENS,
    TOKENS,
    sampled,
    training_setup,
)
from jaxllm.interop.parity.render.notes import notes
from jaxllm.train.optimizers.config import OptimizerConfig
from jaxllm.train.optimizers.optimizer import make_optimizer

SHORT = Recipe(steps=3)


def test_a_stopped_gradient_is_named(pair, short, monkeypatch):
    llama, model = pair
    original = jax_train.mean_loss

    def cut(params, bind, tokens):
        stopped = jax.lax.stop_gradient(params["final_norm"])
        return original({**params, "final_norm": stopped}, bind, tokens)

    monkeypatch.setattr(jax_train, "mean_loss", cut)
    report = compare(llama, model, short, levels=("gradients",))
    assert [row.path for row in report.gradients if not row.ok] == ["final_norm"]
    assert report.first_divergence.what == "gradient"


@pytest.mark.exhaustive
def test_a_gradient_of_pure_noise_is_measured_relative_to_all_gradients(tmp_path):
    """Without RoPE, the key bias shifts all scores of a query, which softmax ignores."""
    original = CASES["smollm3/windows-biases"].build()
    original.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path, dtype="float32")
    tokens = tokens_of(original, batch_size=1)[:, :64]
    report = compare(original, model, tokens, levels=("gradients", "step"))
    assert report.ok, report.first_divergence
    noise = {(row.path, row.parameter) for row in report.gradients if row.relative_to == "all"}
    assert noise == {("layers.2.attn.k_proj", "bias")}


@pytest.mark.parametrize("text", [None, "b a c a " * 300])
def test_later_batches_are_the_text_that_follows(make_llama, tmp_path, text):
    make_llama(num_hidden_layers=1).save_pretrained(tmp_path)
    words = {"a": 5, "the": 7, "c": 8, "?": 9}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    reference, model = open_both(tmp_path)
    given = InputOptions(text=text, batch_size=1).inputs(tmp_path, reference, model)
    sides = {"reference": reference, "model": model, "inputs": given, "levels": ("curve",)}
    setup = training_setup(Comparison(recipe=Recipe(steps=4), **sides))
    first, *later = (batch.target for batch in setup.batches)
    assert [batch.shape[1] for batch in (first, *later)] == [TOKENS, *[LATER_TOKENS] * 3]
    batches = [first[:, :LATER_TOKENS], *later]
    assert np.isin(np.concatenate(batches), list(words.values())).all()
    assert len({batch.tobytes() for batch in batches}) == (4 if text is None else 1)
    name = "the same English text" if text is None else "the given text"
    assert setup.later == f"successive windows of {name}"
    one = training_setup(Comparison(recipe=Recipe(steps=1), **sides))
    assert one.later == ""


def test_a_report_says_what_later_batches_are(pair, short):
    report = compare(*pair, short, levels=("curve",), recipe=Recipe(steps=2))
    assert report.later_batches == "random tokens"
    assert any("after the first are on random tokens" in note for note in notes(report))


@pytest.mark.exhaustive
def test_correct_optimizers_pass(pair, short):
    llama, model = pair
    trainers = make_optimizer(
        OptimizerConfig(learning_rate=1e-3, final_learning_rate=1e-4, decay="linear"), 3, model
    )
    for optimizer in (None, trainers, adamw(model)):
        report = compare(
            llama, model, short, levels=("step", "curve"), recipe=SHORT, optimizer=optimizer
        )
        assert report.ok, report.first_divergence


@pytest.mark.exhaustive
def test_a_hundred_steps_stay_within_the_thresholds(pair, short):
    llama, model = pair
    report = compare(llama, model, short, levels=("curve",), recipe=Recipe(steps=100))
    assert report.ok, report.first_divergence
    assert len(report.curve) == 100
    assert max(row.measured for row in report.curve) <= 1e-4
    assert report.curve[-1].theirs != report.curve[0].theirs


def test_an_optimizer_without_moments_is_rejected(pair, short):
    llama, model = pair
    with pytest.raises(ValueError, match="no mu and no nu"):
        compare(llama, model, short, levels=("step",), optimizer=optax.sgd(1e-3))


def run(gradient, loss=1.0):
    return TrainingRecord((loss,), 1.0, {"gradient": {"mlp.kernel": gradient}})


def test_a_sampled_training_keeps_the_same_elements_of_equal_shapes():
    one, other = (sampled(run(np.arange(4000.0) + start)) for start in (0, 1))
    kept, shifted = (x.first["gradient"]["mlp.kernel"] for x in (one, other))
    assert kept.shape == (ELEMENTS,)
    np.testing.assert_array_equal(shifted, kept + 1)
    assert one.losses == (1.0,)
