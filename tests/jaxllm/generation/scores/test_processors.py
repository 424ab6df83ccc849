"""Scores of the next token are those of transformers' processors, in their order, row by row."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tiers import examples
from transformers import GenerationConfig, GenerationMixin

from jaxllm.generation import Sampling, TokenRules
from jaxllm.generation.scores.processors import Text, choose, process, warp
from jaxllm.generation.scores.settings import stack_settings

V, S, LIMIT = 60, 24, 12
EOS = (3, 11)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 12, (6, S)).astype(np.int32)  # few of them, so that n-grams repeat
STARTS = np.array([5, 1, 9, 4, 1, 8], np.int32)
LENGTHS = np.array([9, 1, 9, 15, 2, 19], np.int32)
SCORES = (3 * RNG.standard_normal((6, V))).astype(np.float32)
WORDS = ((7,), (int(TOKENS[0, 8]), 5), (*map(int, TOKENS[3, 13:15]), 9), (3,), (40, 41))

# Our settings, and the same of transformers.
RULES = {
    "bias": (
        {"sequence_bias": (((4,), 1.5), (WORDS[1], -3.0), (WORDS[2], 4.0), ((8, 8, 8), 9.0))},
        {"sequence_bias": {(4,): 1.5, WORDS[1]: -3.0, WORDS[2]: 4.0, (8, 8, 8): 9.0}},
    ),
    "n-grams": ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 2}),
    "bad words": ({"bad_words": WORDS}, {"bad_words_ids": [[*word] for word in WORDS]}),
    "length": ({"min_length": 10}, {"min_length": 10}),
    "new length": ({"min_new_tokens": 5}, {"min_new_tokens": 5}),
    "forced": (
        {"forced_bos": 7, "forced_eos": (3,), "begin_suppress": (1, 9)},
        {
            "forced_bos_token_id": 7,
            "forced_eos_token_id": 3,
            "begin_suppress_tokens": [1, 9],
        },
    ),
    "suppressed": (
        {"suppress": (1, 8), "begin_suppress": (2, 20)},
        {"suppress_tokens": [1, 8], "begin_suppress_tokens": [2, 20]},
    ),
}
SAMPLINGS = {
    "repetition": {"repetition_penalty": 1.7},
    "temperature": {"temperature": 0.7},
    "top k": {"temperature": 1.3, "top_k": 7},
    "top p": {"temperature": 0.9, "top_p": 0.6},
    "tiny p": {"temperature": 1.0, "top_p": 0.01},
    "min p": {"temperature": 1.0, "min_p": 0.07},
    "typical": {"temperature": 1.1, "typical_p": 0.5},
    "epsilon": {"temperature": 1.0, "epsilon_cutoff": 0.02},
    "eta": {"temperature": 1.4, "eta_cutoff": 0.3},
}
ALL = {
    **{"repetition_penalty": 1.2, "temperature": 1.5, "top_k": 30, "top_p": 0.95},
    **{"min_p": 0.001, "typical_p": 0.9, "epsilon_cutoff": 1e-3, "eta_cutoff": 2e-3},
}
CASES = {
    **{name: ({}, ours, theirs) for name, (ours, theirs) in RULES.items()},
    **{name: (ours, {}, {}) for name, ours in SAMPLINGS.items()},
    "all": (
        ALL,
        {**RULES["bias"][0], **RULES["n-grams"][0], **RULES["suppressed"][0], "min_length": 10},
        {**RULES["bias"][1], **RULES["n-grams"][1], **RULES["suppressed"][1], "min_length": 10},
    ),
}


class Config:
    is_encoder_decoder = False


class Generator(GenerationMixin):
    """Nothing but what transformers needs to list the processors of a config."""

    config = Config()


def by_transformers(row: int, sampling: dict, rules: dict) -> np.ndarray:
    """The scores of a row, whose prompt and new tokens transformers gets without padding."""
    start, length = int(STARTS[row]), int(LENGTHS[row])
    config = GenerationConfig(
        **{**sampling, **rules}, do_sample="temperature" in sampling, eos_token_id=[*EOS]
    )
    if "top_k" not in sampling:
        config.top_k = 0
    config.max_length = start + LIMIT
    config._eos_token_tensor = torch.tensor(EOS)
    processors = Generator()._get_logits_processor(
        config, input_ids_seq_length=start, device="cpu", logits_processor=None
    )
    tokens = torch.tensor(TOKENS[row : row + 1, :length].astype(np.int64))
    return processors(tokens, torch.tensor(SCORES[row : row + 1]))[0].numpy()


@jax.jit
def scores_of(settings):
    text = Text(jnp.asarray(TOKENS), jnp.asarray(LENGTHS), jnp.asarray(STARTS))
    return warp(process(jnp.asarray(SCORES), text, settings), settings)


def stacked(samplings, rules):
    return stack_settings(V, samplings, rules, limits=[LIMIT] * 6, eos_ids=EOS)


@pytest.mark.parametrize("name", CASES)
def test_scores_are_those_of_transformers(name):
    sampling, ours, theirs = CASES[name]
    found = np.asarray(scores_of(stacked([Sampling(**sampling)] * 6, [TokenRules(**ours)] * 6)))
    expected = np.stack([by_transformers(row, sampling, theirs) for row in range(6)])
    np.testing.assert_array_equal(np.isinf(found), np.isinf(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert (found != SCORES).any()


def test_rows_have_their_own_settings():
    """One program serves a batch of rows, each with other settings, and any mix of them."""
    cases = [CASES[name] for name in ("all", "forced", "top p", "typical", "bad words", "eta")]
    before = scores_of._cache_size()
    for turn in (cases, cases[::-1]):
        samplings = [Sampling(**sampling) for sampling, _, _ in turn]
        rules = [TokenRules(**ours) for _, ours, _ in turn]
        found = np.asarray(scores_of(stacked(samplings, rules)))
        for row, (sampling, _, theirs) in enumerate(turn):
            expected = by_transformers(row, sampling, theirs)
            np.testing.assert_array_equal(np.isinf(found[row]), np.isinf(expected))
            np.testing.assert_allclose(found[row], expected, rtol=1e-6, atol=1e-6)
    assert scores_of._cache_size() - before <= 1


def test_penalties_of_presence_and_frequency_count_new_tokens():
    """As vLLM and OpenAI define them; transformers has none."""
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=-0.25)
    found = np.asarray(scores_of(stacked([sampling] * 6, [TokenRules()] * 6)))
    for row in range(6):
        new = TOKENS[row, STARTS[row] : LENGTHS[row]]
        count = np.bincount(new, minlength=V)
        expected = SCORES[row] - 0.5 * (count > 0) + 0.25 * count
        np.testing.assert_allclose(found[row], expected, rtol=1e-6, atol=1e-6)


def test_only_allowed_tokens_are_left():
    rules = [TokenRules(allowed=(4, 9)), *[TokenRules()] * 5]
    found = np.asarray(scores_of(stacked([Sampling()] * 6, rules)))
    assert np.flatnonzero(np.isfinite(found[0])).tolist() == [4, 9]
    np.testing.assert_array_equal(found[1:], SCORES[1:])


@jax.jit
def draws_of(settings, scores_V):
    """Draws as of so many rows, each with a seed of its own, in blocks."""

    def block(first):
        rows = first + jnp.arange(len(settings.top_k_B))
        seeds = jnp.stack([jnp.zeros_like(rows), rows], axis=1).astype(jnp.uint32)
        own = Text(*(jnp.repeat(x[:1], len(rows), axis=0) for x in (TOKENS, LENGTHS, STARTS)))
        scores_BV = jnp.broadcast_to(scores_V, (len(rows), len(scores_V)))
        scores_BV = process(scores_BV, own, settings)
        return choose(scores_BV, settings._replace(seeds_B2=seeds), jnp.zeros_like(rows))

    return jax.lax.map(block, jnp.arange(0, 100_000, 1000)).reshape(-1)


LIMITS = {
    **{"top_k": 30, "top_p": 0.95, "min_p": 0.01, "typical_p": 0.9},
    **{"epsilon_cutoff": 0.01, "eta_cutoff": 0.02},
}
# Every combination of the limits of sampling.
COMBINATIONS = [
    " ".join(names)
    for count in range(len(LIMITS) + 1)
    for names in itertools.combinations(LIMITS, count)
]


@pytest.mark.parametrize("names", examples(COMBINATIONS, " ".join(LIMITS)))
def test_draws_of_each_combination_follow_the_distribution_of_transformers(names):
    sampling = {"temperature": 1.3, **{name: LIMITS[name] for name in names.split()}}
    scores_V = SCORES[0] / 2
    expected_V = torch.softmax(torch.tensor(warped_by_transformers(sampling, scores_V)), -1).numpy()
    check_draws(Sampling(**sampling), TokenRules(), scores_V, expected_V)


@pytest.mark.parametrize("name", examples(CASES, "all"))
def test_draws_follow_the_processed_distribution(name):
    """The expected distribution is that of transformers, for each processor and for all of them."""
    sampling, ours, theirs = CASES[name]
    sampling = {"temperature": 1.2, **sampling}
    expected_V = torch.softmax(torch.tensor(by_transformers(0, sampling, theirs)), -1).numpy()
    check_draws(Sampling(**sampling), TokenRules(**ours), SCORES[0], expected_V)


def warped_by_transformers(sampling: dict, scores_V: np.ndarray) -> np.ndarray:
    config = GenerationConfig(**{"top_k": 0, **sampling}, do_sample=True)
    config.max_length = S
    processors = Generator()._get_logits_processor(config, input_ids_seq_length=1, device="cpu")
    return processors(torch.tensor([[0]]), torch.tensor(scores_V[None]))[0].numpy()


def check_draws(
    sampling: Sampling, rules: TokenRules, scores_V: np.ndarray, expected_V: np.ndarray
) -> None:
    """Compares 100,000 draws after row 0 with the expected distribution, by chi-square."""
    settings = stack_settings(
        V, [sampling] * 1000, [rules] * 1000, limits=[LIMIT] * 1000, eos_ids=EOS
    )
    draws = np.asarray(draws_of(settings, scores_V))
    expected_V = expected_V.astype(np.float64) * len(draws)
    count_V = np.bincount(draws, minlength=V)
    assert set(np.flatnonzero(count_V)) <= set(np.flatnonzero(expected_V))
    is_common_V = expected_V >= 5  # the usual condition of the test; the others count as one
    counts = [*count_V[is_common_V], count_V[~is_common_V].sum()]
    wanted = np.array([*expected_V[is_common_V], expected_V[~is_common_V].sum() + 1e-9])
    assert chisquare(counts, wanted * sum(counts) / wanted.sum()).pvalue > 1e-3
