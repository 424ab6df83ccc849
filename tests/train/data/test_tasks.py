"""Synthetic tasks: targets, disjoint rows, determinism, and the models that they accept."""

import dataclasses
import itertools

import chex
import numpy as np
import pytest
from kinds import CONFIGS, SIZES, WAVES

from jaxllm.config import AttentionConfig, SequenceConfig
from jaxllm.models import build_abstract
from jaxllm.train.data.batches import Batches
from jaxllm.train.data.tasks import HELD_OUT_ROWS, TaskConfig

MODELS = {
    "sum": SequenceConfig(
        **SIZES, attention=AttentionConfig(causal=False), input_dim=3, output_dim=3, pooled=True
    ),
    "copy": CONFIGS["encoder-decoder"],
    "copy of vectors": dataclasses.replace(CONFIGS["vectors given vectors"], source_dim=5),
    "waves": WAVES,
    "colour": CONFIGS["sees images"],
}


def copier(vocab_size: int, source_vocab_size: int | None):
    config = MODELS["copy"]
    decoder = dataclasses.replace(config.decoder, vocab_size=vocab_size)
    return dataclasses.replace(config, decoder=decoder, source_vocab_size=source_vocab_size)


def with_image_token(token: int):
    config = MODELS["colour"]
    return dataclasses.replace(config, vision=dataclasses.replace(config.vision, image_token=token))


def load(name: str, seq_len: int = 4, **options: int):
    task = TaskConfig(task=name.partition(" ")[0], **options)
    return task.load(build_abstract(MODELS[name]), seq_len)


def rows(name: str, part: str, count: int = 200) -> dict[str, np.ndarray]:
    examples = load(name, 4 if name == "colour" else 12)
    return getattr(examples, part).take(np.arange(count))


@pytest.mark.parametrize("name", MODELS)
def test_rows_are_unique_and_disjoint_between_training_and_held_out(name):
    kept = {
        part: {
            tuple(row.tobytes() for row in example) for example in zip(*batch.values(), strict=True)
        }
        for part in ("train", "held_out")
        for batch in [rows(name, part)]
    }
    assert not kept["train"] & kept["held_out"]
    assert len(kept["train"]) == len(kept["held_out"]) == 200


def test_short_token_sequences_are_disjoint_between_training_and_held_out():
    """Sequences of 2 tokens from a small vocabulary repeat quickly."""
    examples = load("copy", 2)
    sources = {
        part: {tuple(row) for row in getattr(examples, part).take(np.arange(1000))["source"]}
        for part in ("train", "held_out")
    }
    assert not sources["train"] & sources["held_out"]
    assert len(sources["train"]) > 100 < len(sources["held_out"])


def test_sum_targets_are_the_sums_of_the_inputs():
    batch = rows("sum", "train")
    np.testing.assert_allclose(batch["targets"], batch["inputs"].sum(axis=1), rtol=1e-5, atol=1e-6)
    assert batch["mask"].shape == (200,)


def test_copy_targets_equal_the_source():
    batch = rows("copy", "train")
    np.testing.assert_array_equal(batch["tokens"][:, 1:], batch["source"])
    assert set(batch["tokens"][:, 0]) == {0}
    assert set(batch["source"].flatten()) == set(range(1, 20))  # known to both vocabularies
    vectors = rows("copy of vectors", "train")
    np.testing.assert_array_equal(vectors["targets"], vectors["inputs"])


def test_two_tokens_besides_0_can_be_copied():
    examples = TaskConfig(task="copy").load(build_abstract(copier(3, None)), 1)
    assert set(examples.train.take(np.arange(20))["source"].flatten()) == {2}
    assert set(examples.held_out.take(np.arange(20))["source"].flatten()) == {1}


def test_waves_are_sums_of_two_sinusoids():
    """Such sums obey a linear recurrence: x[t+4] + x[t] = a (x[t+3] + x[t+1]) + b x[t+2]."""
    batch = load("waves", 40).train.take(np.arange(20))
    np.testing.assert_array_equal(batch["inputs"][:, 1:], batch["targets"][:, :-1])
    for x_T in np.moveaxis(batch["inputs"].astype(np.float64), -1, 1).reshape(-1, 40):
        left = x_T[4:] + x_T[:-4]
        right = np.stack([x_T[3:-1] + x_T[1:-3], x_T[2:-2]], axis=1)
        _, residual, *_ = np.linalg.lstsq(right, left, rcond=None)
        assert residual < 1e-6 * np.sum(left**2)


def test_the_colour_token_matches_the_image():
    batch = rows("colour", "train", 400)
    assert (batch["tokens"][:, :-1] == 19).all()
    assert batch["mask"].sum() == 400 == batch["mask"][:, -1].sum()
    colour = (batch["images"].mean(axis=(2, 3)) > 0) @ [1, 2, 4]
    assert np.mean(colour == batch["tokens"][:, -1]) > 0.99
    assert set(colour) == set(range(8))


@pytest.mark.parametrize("name", MODELS)
def test_batches_depend_only_on_seed_and_step(name):
    batches = Batches(load(name), batch_size=4)
    straight = list(itertools.islice(batches.train(), 7))
    for key, expected in straight[5].items():
        np.testing.assert_array_equal(next(batches.train(5))[key], expected)
    for rows in (np.array([0, 3]), np.array([1, 2])):
        share = next(Batches(load(name), batch_size=4, rows=rows).train())
        for key, expected in straight[0].items():
            np.testing.assert_array_equal(share[key], expected[rows])
    once, again = list(batches.held_out(2)), list(batches.held_out(2))
    assert len(once) == len(again) == 2
    chex.assert_trees_all_equal(once, again)
    assert len(batches.examples.held_out) == HELD_OUT_ROWS
    other = Batches(load(name, seed=1), batch_size=4, seed=1)
    assert other.fingerprint() != batches.fingerprint()
    assert Batches(load(name), batch_size=4).fingerprint() == batches.fingerprint()


@pytest.mark.parametrize(
    ("task", "model", "message"),
    [
        (
            "sum",
            WAVES,
            "'sum' trains a SequenceModel with pooled=True, .* is SequenceModel with pooled=False",
        ),
        (
            "copy",
            WAVES,
            "'copy' trains an EncoderDecoder or a SequenceToSequence, .* is SequenceModel",
        ),
        (
            "waves",
            MODELS["sum"],
            "attention.causal=True; this run has pooled=True and attention.causal=False",
        ),
        (
            "waves",
            MODELS["copy"],
            "attention.causal=True; this run has the model class EncoderDecoder",
        ),
        (
            "colour",
            MODELS["copy"],
            "a Decoder whose vision has an image_token, .* is EncoderDecoder",
        ),
        ("sum", CONFIGS["pooled"], "needs input_dim to equal output_dim, but they are 3 and 5"),
        (
            "copy",
            CONFIGS["vectors given vectors"],
            "needs source_dim to equal decoder.output_dim, but they are 3 and 5",
        ),
        *(
            ("copy", copier(vocab_size=source, source_vocab_size=target), "at least 3 tokens, not")
            for source, target in [(1, None), (2, None), (20, 2), (2, 20)]
        ),
        ("colour", with_image_token(20), "image_token=20 to be less than vocab_size=20"),
        ("colour", MODELS["colour"], "needs seq_len=4, the number of tokens per image, not 5"),
    ],
)
def test_an_unsuitable_model_is_rejected(task, model, message):
    with pytest.raises(ValueError, match=message):
        TaskConfig(task=task).load(build_abstract(model), 5)
