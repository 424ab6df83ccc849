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


def test_after_a_tie_the_reference_judges_our_text(pair, short, monkeypatch):
    """The reference is told that another token was as good; ours goes on as it would or not."""
    llama, model = pair
    recordings = {}
    compare(llama, model, short, levels=("generate",), recordings=recordings)
    [(name, theirs)] = [
        (n, x) for n, x in recordings.items() if isinstance(x, generation.ReferenceGeneration)
    ]
    tied, greedy = theirs.logits_PNV.copy(), theirs.greedy[0]
    other = int(np.argsort(tied[0, 4])[-2])
    tied[0, 4, other] = tied[0, 4, greedy[4]]
    recordings[name] = theirs._replace(logits_PNV=tied)
    prompt = [*theirs.prompts[0], *greedy[:4], other]
    rest = [int(token) for token in generate(model, [prompt], generation.NEW_TOKENS - 5)[0]]
    wrong = [*rest[:3], (rest[3] + 1) % 96, *rest[4:]]
    original, generated = generation.generate, [None]
    logits = generation.ReferenceGenerator.logits

    def near(generator, prompts, new):
        found = logits(generator, prompts, new)
        found[..., 4, other] = found[..., 4, :].max()
        return found

    def ours(*args, **options):
        texts = original(*args, **options)
        return [[*greedy[:4], other, *generated[0]], *texts[1:]]

    monkeypatch.setattr(generation, "generate", ours)
    monkeypatch.setattr(generation.ReferenceGenerator, "logits", near)
    verdicts = {}
    for what, generated[0] in (("right", rest), ("wrong", wrong)):
        report = compare(llama, model, short, levels=("generate",), recordings=recordings)
        [text] = [row for row in report.generate if row.path == "generate.greedy"][:1]
        verdicts[what] = (text.is_confirmed, text.verdict)
    assert verdicts == {"right": (True, "equal within rounding"), "wrong": (False, "differs")}


def test_the_best_tokens_are_those_within_noise():
    logits_NV = np.array([[0.0, 3.0, 1.0], [2.0, 1.0, 2.0 - 1e-6]])
    assert generation.are_best([1, 2], logits_NV, noise=1e-6)
    assert not generation.are_best([2, 2], logits_NV, noise=1e-6)


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
