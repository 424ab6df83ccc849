"""Continuations: log-probabilities, reasons, texts, streams, and several sequences."""

import jax
import numpy as np
import pytest
from tiny import random_model

from jaxllm.errors import UserError
from jaxllm.generation import Sampling, TokenRules, generate

RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(0, 96, length).tolist() for length in (5, 17, 1)]
NEW = 20


class Letters:
    """A tokenizer whose tokens are two letters each."""

    def decode(self, tokens: list[int]) -> str:
        return "".join(f"{chr(65 + token // 10)}{chr(97 + token % 10)}" for token in tokens)


@pytest.fixture(scope="module")
def model():
    return random_model(num_layers=1)


@pytest.fixture(scope="module")
def plain(model):
    return generate(model, PROMPTS, NEW)


def test_log_probs_are_those_of_a_full_forward_pass(model):
    """Before any rule or penalty."""
    sampling = Sampling(temperature=1.3, top_k=9, repetition_penalty=1.5)
    rows = generate(
        model,
        PROMPTS,
        NEW,
        sampling=sampling,
        rules=TokenRules(no_repeat_ngram_size=2),
        return_logprobs=True,
    )
    forward = jax.jit(lambda tokens: jax.nn.log_softmax(model(tokens).logits))
    for prompt, row in zip(PROMPTS, rows, strict=True):
        text = np.zeros((1, 64), np.int32)
        text[0, : len(prompt) + NEW] = [*prompt, *row]
        places = len(prompt) - 1 + np.arange(NEW)
        expected = np.asarray(forward(text))[0, places, list(row)]
        np.testing.assert_allclose(row.log_probs, expected, atol=1e-5)


def test_rows_say_why_they_ended(model, plain):
    eos, stop = plain[0][3], plain[1][5]
    rows = generate(model, PROMPTS, NEW, eos_ids=[eos], stop_ids=[stop], tokenizer=Letters())
    for row, free in zip(rows, plain, strict=True):
        ends = [i for i, token in enumerate(free) if token in (eos, stop)]
        reason = "length" if not ends else "eos" if free[ends[0]] == eos else "stop"
        assert (row, row.ended) == (free[: ends[0] + 1 if ends else NEW], reason)
        assert row.text == Letters().decode(row if reason == "length" else row[:-1])
        assert row.log_probs is None
    assert {row.ended for row in rows} >= {"eos", "stop"}


def test_a_stop_string_may_begin_and_end_within_tokens(model, plain):
    text = Letters().decode(plain[0])
    stop = text[13:16]  # the second half of a token, and the next one
    rows = generate(model, PROMPTS, NEW, stop_strings=["???", stop], tokenizer=Letters())
    assert rows[0].ended == "stop"
    assert rows[0].text == text[: text.find(stop)]
    assert rows[0] == plain[0][: (text.find(stop) + len(stop) + 1) // 2]
    with pytest.raises(UserError, match="stop_strings need a tokenizer"):
        generate(model, PROMPTS, NEW, stop_strings=["x"])


def test_a_stream_brings_the_same_tokens_one_by_one(model, plain):
    seen: list[tuple[int, list[int]]] = []
    stop = Letters().decode(plain[0])[13:16]
    rows = generate(
        model,
        PROMPTS,
        NEW,
        stream=lambda row, tokens: seen.append((row, tokens)),
        stop_strings=[stop],
        tokenizer=Letters(),
    )
    assert all(len(tokens) == 1 for _, tokens in seen)
    for row, tokens in enumerate(rows):
        assert [token for i, new in seen if i == row for token in new] == tokens
    assert rows == generate(model, PROMPTS, NEW, stop_strings=[stop], tokenizer=Letters())


def test_several_sequences_and_seeds_of_rows(model):
    sampling = Sampling(temperature=1.0)
    rows = generate(model, PROMPTS, 8, sampling=sampling, seed=[5, 6, 5], num_return_sequences=2)
    assert len(rows) == 6
    assert rows[0] != rows[1]
    alone = generate(model, PROMPTS[1:2], 8, sampling=sampling, seed=[6], num_return_sequences=3)
    assert alone[:2] == rows[2:4]
    mixed = generate(model, PROMPTS, 8, sampling=[Sampling(), sampling, Sampling()], seed=[1, 6, 2])
    greedy = generate(model, PROMPTS, 8)
    assert mixed == [greedy[0], rows[2], greedy[2]]
    with pytest.raises(UserError, match="sampling has 2 entries for 3 prompts"):
        generate(model, PROMPTS, 8, sampling=[sampling] * 2)
    with pytest.raises(UserError, match="num_return_sequences=0 is less than 1"):
        generate(model, PROMPTS, 8, num_return_sequences=0)


def test_a_user_has_the_last_word_on_scores(model):
    def only_even(scores_BV, text):
        return scores_BV.at[:, 1::2].set(-np.inf)

    rows = generate(model, PROMPTS, 8, processor=only_even)
    assert all(token % 2 == 0 for row in rows for token in row)
    assert rows != generate(model, PROMPTS, 8)
