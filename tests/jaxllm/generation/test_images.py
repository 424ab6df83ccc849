"""Prompts with images: the cached continuation is that of full forward passes."""

import jax
import numpy as np
import pytest
from kinds import CONFIGS
from tiny import random_model, random_of

from jaxllm.errors import UserError
from jaxllm.generation import generate, incremental

RNG = np.random.default_rng(0)
IMAGE, EACH, NEW = 19, 4, 8
SEES = CONFIGS["sees images"]


def prompt_of(*parts: int) -> list[int]:
    """Random tokens, as many as each part says, with an image between two parts."""
    texts = [RNG.integers(0, IMAGE, size).tolist() for size in parts]
    return [t for i, text in enumerate(texts) for t in ([IMAGE] * EACH if i else []) + text]


PROMPTS = [prompt_of(3, 2, 5), prompt_of(4), prompt_of(0, 1)]
IMAGES = [RNG.standard_normal((2, 3, 16, 16)), None, RNG.standard_normal((1, 3, 16, 16))]


def by_hand(model, prompt: list[int], images: np.ndarray | None) -> list[int]:
    """One full forward pass per token, of a single row."""

    @jax.jit
    def forward(tokens):
        seen = None if images is None else model.embed_images(images, tokens)
        return model(tokens, image_embedding=seen).logits

    tokens = list(prompt)
    for _ in range(NEW):
        padded = np.zeros((1, 32), np.int32)
        padded[0, : len(tokens)] = tokens
        scores = np.array(forward(padded)[0, len(tokens) - 1])
        tokens.append(int(scores[:IMAGE].argmax()))
    return tokens[len(prompt) :]


def no_image(scores_BV, text):
    return scores_BV.at[:, IMAGE].set(-np.inf)


def test_prompts_with_and_without_images_are_continued_together(monkeypatch):
    model = random_of(SEES)
    options = {"images": IMAGES, "processor": no_image}
    expected = [by_hand(model, *row) for row in zip(PROMPTS, IMAGES, strict=True)]
    found = generate(model, PROMPTS, NEW, **options)
    assert found == expected
    blind = generate(model, PROMPTS, NEW, processor=no_image)
    assert blind[0] != expected[0]
    assert blind[1] == expected[1]
    for alone, row in zip(
        found, generate(model, PROMPTS[:1], NEW, images=IMAGES[:1]), strict=False
    ):
        assert IMAGE in row or row == alone


@pytest.mark.exhaustive
def test_images_are_cut_with_the_chunks_of_long_prompts(monkeypatch):
    model = random_of(SEES)
    options = {"images": IMAGES, "processor": no_image, "num_return_sequences": 2}
    expected = generate(model, PROMPTS, NEW, **options)
    jax.clear_caches()
    monkeypatch.setattr(incremental, "CHUNK", 5)
    assert generate(model, PROMPTS, NEW, **options) == expected
    jax.clear_caches()


@pytest.mark.exhaustive
def test_a_draft_that_does_not_see_changes_nothing():
    model = random_of(SEES)
    options = {"images": IMAGES, "processor": no_image}
    draft = random_model(vocab_size=20, num_layers=1)
    expected = generate(model, PROMPTS, NEW, **options)
    assert generate(model, PROMPTS, NEW, draft=draft, **options) == expected


def test_images_that_do_not_fit_are_refused():
    model = random_of(SEES)
    for own, images, message in (
        (random_model(num_layers=1), IMAGES, "need a model with an image encoder"),
        (model, IMAGES[:2], "images has 2 entries for 3 prompts"),
        (model, [None, None, IMAGES[2]], r"prompt 0 has 8 image tokens \(19\) for 0 images, each"),
        (model, [IMAGES[0][:, :2], None, None], r"prompt 0 have shape \(2, 2, 16, 16\)"),
    ):
        with pytest.raises(UserError, match=message):
            generate(own, PROMPTS, NEW, images=images)
