"""Beam search gives the tokens of transformers, and the optimum if there are enough beams."""

import itertools

import jax
import numpy as np
import pytest
import torch
from tiers import examples
from tiny import random_model
from transformers import AutoModelForCausalLM

from jaxllm.errors import UserError
from jaxllm.generation import Sampling, beam_search, generate
from jaxllm.interop import save_pretrained
from jaxllm.models import with_scanned_layers

RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(0, 96, length).tolist() for length in (5, 17, 1, 9)]


@pytest.fixture(scope="module")
def model():
    return with_scanned_layers(random_model(), False)


@pytest.fixture(scope="module")
def original(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("beam") / "llama"
    save_pretrained(model, folder, format="hf")
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def by_transformers(original, prompt: list[int], new: int, ends: list[int], **options) -> list[int]:
    return several(original, prompt, new, ends, **options)[0]


def several(original, prompt: list[int], new: int, ends: list[int], **options) -> list[list[int]]:
    tokens = torch.tensor([prompt])
    rows = original.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=ends or None,
        **options,
    )[:, len(prompt) :].tolist()
    cuts = [next((i + 1 for i, token in enumerate(row) if token in ends), None) for row in rows]
    return [row[:cut] for row, cut in zip(rows, cuts, strict=True)]


@pytest.mark.parametrize("num_beams", examples([2, 4], 4))
@pytest.mark.parametrize("length_penalty", examples([0.0, 2.0], 2.0))
@pytest.mark.parametrize("ends", examples([[], [*range(0, 96, 5)]], [*range(0, 96, 5)]))
def test_tokens_match_transformers(model, original, num_beams, length_penalty, ends):
    ours = beam_search(
        model, PROMPTS, 12, num_beams=num_beams, length_penalty=length_penalty, eos_ids=ends
    )
    options = {"num_beams": num_beams, "length_penalty": length_penalty}
    assert ours == [by_transformers(original, p, 12, ends, **options) for p in PROMPTS]


@pytest.mark.exhaustive
def test_tokens_with_repetition_penalty_match_transformers(model, original):
    """Beam search penalizes log-probabilities; greedy decoding penalizes logits."""
    ends = list(range(0, 96, 7))
    penalty = {"repetition_penalty": 1.7}
    beams = beam_search(model, PROMPTS, 12, num_beams=3, eos_ids=ends, **penalty)
    assert beams != beam_search(model, PROMPTS, 12, num_beams=3, eos_ids=ends)
    options = {"num_beams": 3, **penalty}
    assert beams == [by_transformers(original, p, 12, ends, **options) for p in PROMPTS]
    greedy = generate(model, PROMPTS, 12, sampling=Sampling(**penalty), eos_ids=ends)
    assert greedy == [by_transformers(original, p, 12, ends, **penalty) for p in PROMPTS]


@pytest.mark.exhaustive
def test_one_beam_is_greedy_decoding(model):
    assert beam_search(model, PROMPTS, 10, num_beams=1) == generate(model, PROMPTS, 10)


@pytest.mark.exhaustive
def test_prompt_gives_the_same_tokens_alone_and_in_a_batch(model):
    together = beam_search(model, PROMPTS, 10, num_beams=3, eos_ids=[4])
    alone = [beam_search(model, [p], 10, num_beams=3, eos_ids=[4])[0] for p in PROMPTS]
    assert together == alone


@pytest.mark.exhaustive
def test_enough_beams_find_the_optimum():
    small = random_model(vocab_size=5)
    prompt, new = [1, 2, 3], 3
    [found] = beam_search(small, [prompt], new, num_beams=25)
    every = np.array([[*prompt, *rest] for rest in itertools.product(range(5), repeat=new)])
    log_probs = jax.nn.log_softmax(small(every).logits)
    rows = np.arange(len(every))
    score = sum(
        np.asarray(log_probs[rows, len(prompt) - 1 + i, every[:, len(prompt) + i]])
        for i in range(new)
    )
    assert found == every[score.argmax(), len(prompt) :].tolist()


def test_zero_repetition_penalty_is_rejected(model):
    with pytest.raises(ValueError, match=r"repetition_penalty=0\.0 must be finite and above 0"):
        beam_search(model, PROMPTS, 4, num_beams=2, repetition_penalty=0.0)


@pytest.mark.parametrize("num_beams", [0, -1, 2**31 // 96 + 1])
def test_fewer_than_one_beam_or_too_many_are_rejected(model, num_beams):
    with pytest.raises(ValueError, match=f"num_beams={num_beams}"):
        beam_search(model, PROMPTS, 4, num_beams=num_beams)


@pytest.mark.cases(1, exhaustive=3)
@pytest.mark.parametrize("length_penalty", [2.0, -0.5, 0.0])
@pytest.mark.parametrize("early_stopping", ["never", True])
def test_early_stopping_and_several_sequences_match_transformers(
    model, original, early_stopping, length_penalty
):
    ends, options = [*range(0, 96, 5)], {"num_beams": 4, "num_return_sequences": 3}
    options |= {"early_stopping": early_stopping, "length_penalty": length_penalty}
    ours = beam_search(model, PROMPTS, 12, eos_ids=ends, **options)
    expected = [several(original, prompt, 12, ends, **options) for prompt in PROMPTS]
    assert ours == [row for rows in expected for row in rows]
    assert {row.ended for row in ours} <= {"eos", "length"}


def test_settings_that_are_not_known_are_rejected(model):
    with pytest.raises(UserError, match="early_stopping='soon' is none of False, True"):
        beam_search(model, PROMPTS, 4, num_beams=2, early_stopping="soon")
    with pytest.raises(UserError, match="num_return_sequences=3 is not from 1 to num_beams=2"):
        beam_search(model, PROMPTS, 4, num_beams=2, num_return_sequences=3)
