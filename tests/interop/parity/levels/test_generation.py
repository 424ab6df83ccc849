"""Generation level: both sides generate the same tokens, except at ties."""

import numpy as np
import pytest
from tiny import random_model

from jaxllm.generation import generate
from jaxllm.interop.parity import Inputs, compare
from jaxllm.interop.parity.levels import generation
from jaxllm.models import with_scanned_layers


def test_a_different_token_is_found(pair, tokens, monkeypatch):
    llama, model = pair
    original = generation.beam_search

    def wrong(*args, **options):
        first, *others = original(*args, **options)
        return [[*first[:-1], (first[-1] + 1) % 96], *others]

    monkeypatch.setattr(generation, "beam_search", wrong)
    report = compare(llama, model, tokens, levels=("generate",))
    assert [row.path for row in report.generate if not row.ok] == ["generate.beams"]
    assert report.first_divergence.prompt_tokens == 1
    assert report.first_divergence.measured == 1


def test_a_token_that_differs_at_a_tie_is_not_an_error():
    logits_NV = np.array([[0.0, 3.0, 1.0], [2.0, 1.0, 2.0 - 1e-6]])
    tie = generation.is_greedy_tie([1, 2], [1, 0], logits_NV, noise=1e-6)
    no_tie = generation.is_greedy_tie([1, 1], [1, 0], logits_NV, noise=1e-6)
    assert (tie, no_tie) == (True, False)
    assert not generation.is_greedy_tie([1, 0], [1, 0], logits_NV, noise=1e-6)


def test_prompts_have_different_lengths(tokens):
    assert [len(prompt) for prompt in generation.prompts_of(Inputs.of(tokens))] == [1, 9, 34, 97]
    assert [len(prompt) for prompt in generation.prompts_of(Inputs.of(tokens[:1, :20]))] == [
        1,
        9,
        20,
    ]


@pytest.mark.exhaustive
def test_forced_logits_are_the_logits_that_generation_uses():
    model = with_scanned_layers(random_model(), False)
    prompts = [[5, 17, 3], [60]]
    new = generate(model, prompts, 4)
    logits_PNV = generation.forced_logits(model, prompts, new)
    assert logits_PNV.argmax(-1).tolist() == [list(tokens) for tokens in new]
    whole = model(np.array([[*prompts[0], *new[0]]])).logits[0, 2:6]
    np.testing.assert_allclose(logits_PNV[0], whole, rtol=1e-4, atol=1e-5)
