"""Speculative decoding: the tokens, or their distribution, are those without a draft model."""

import collections
import dataclasses

import jax
import numpy as np
import pytest
from kinds import CONFIGS
from scipy.stats import chisquare
from tiers import examples
from tiny import random_model, random_of

from jaxllm.config import AttentionConfig, LayerKind, PositionConfig, RopeConfig, RopeScaling
from jaxllm.errors import NonFiniteError, UserError
from jaxllm.generation import Sampling, TokenRules, generate
from jaxllm.generation.speculative import advance, begin

RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(0, 96, length).tolist() for length in (5, 17, 1, 9)]
LEARNED = {"positions": PositionConfig(kind="learned"), "num_layers": 1}


def disturbed(model, size: float = 0.02):
    """A draft that is often right: the model with other small numbers added to its weights."""
    from jaxllm.params import named_parameters, with_arrays

    rng = np.random.default_rng(7)
    arrays = {
        name: v.get_value() + size * rng.standard_normal(v.shape).astype(v.dtype)
        for name, v in named_parameters(model).items()
    }
    return with_arrays(model, arrays)


def mixed(attention: str, **config):
    """A model with a layer of this attention and one without limits."""
    pattern = (LayerKind(attention=attention), LayerKind())
    config = AttentionConfig(**config)
    return random_model(pattern=pattern, attention=config, num_layers=2)


class Letters:
    """A tokenizer whose tokens are two letters each."""

    def decode(self, tokens: list[int]) -> str:
        return "".join(f"{chr(65 + token // 10)}{chr(97 + token % 10)}" for token in tokens)


MODELS = {
    "full": random_model,
    "windows": lambda: mixed("window", window=6),
    "chunks": lambda: mixed("chunk", chunk=7),
    "encoder-decoder": lambda: random_of(
        dataclasses.replace(CONFIGS["encoder-decoder"], start_token=0)
    ),
}


@pytest.mark.parametrize("kind", examples(MODELS, "windows"))
def test_greedy_tokens_are_those_without_a_draft(kind):
    """Of ragged prompts, past windows, with penalties and rules, by drafts of any quality."""
    model = MODELS[kind]()
    vocab_size = model.config.vocab_size
    prompts = [[token % vocab_size for token in prompt] for prompt in PROMPTS]
    settings = {
        "sampling": Sampling(repetition_penalty=1.2),
        "rules": TokenRules(no_repeat_ngram_size=3, begin_suppress=(1,)),
    }
    expected = generate(model, prompts, 40, return_logprobs=True, **settings)
    rates = []
    for draft in (model, disturbed(model), disturbed(model, 1.0)):
        rows = generate(model, prompts, 40, draft=draft, return_logprobs=True, **settings)
        assert rows == expected
        for row, own in zip(rows, expected, strict=True):
            np.testing.assert_allclose(row.log_probs, own.log_probs, atol=1e-4)
            assert (row.ended, row.drafted % 4) == ("length", 0)
        rates.append(sum(r.accepted for r in rows) / sum(r.drafted for r in rows))
    # The last round of the model itself is cut off at the limit.
    assert rates[0] >= 0.9
    assert rates[0] > rates[1] > rates[2]


def test_ends_stops_and_streams_are_those_without_a_draft():
    model = random_model(num_layers=1)
    draft = disturbed(model)
    free = generate(model, PROMPTS, 24, tokenizer=Letters())
    options = {
        "eos_ids": [free[1][4]],
        "stop_ids": [free[2][9]],
        "stop_strings": [Letters().decode(free[0])[13:16]],
        "tokenizer": Letters(),
    }
    expected = generate(model, PROMPTS, 24, **options)
    assert {row.ended for row in expected} >= {"eos", "stop"}
    seen: dict[int, list[int]] = collections.defaultdict(list)
    for stream in (None, lambda row, tokens: seen[row].extend(tokens)):
        rows = generate(model, PROMPTS, 24, draft=draft, stream=stream, **options)
        assert rows == expected
        for row, own in zip(rows, expected, strict=True):
            assert (row.ended, row.text) == (own.ended, own.text)
    assert [seen[i] for i in range(len(rows))] == rows


@pytest.mark.exhaustive
@pytest.mark.parametrize("count", [1, 3, 9])
def test_any_number_of_tokens_may_be_proposed(count):
    model = mixed("window", window=6)
    draft, prompts = disturbed(model), PROMPTS[:2]
    found = generate(model, prompts, 40, draft=draft, num_draft_tokens=count)
    assert found == generate(model, prompts, 40)
    assert all(row.drafted % count == 0 and row.accepted for row in found)


@pytest.mark.exhaustive
def test_learned_positions_may_end_with_the_text():
    model = random_model(**LEARNED, max_len=32)
    prompts = [[token % model.config.vocab_size for token in prompt] for prompt in PROMPTS]
    assert generate(model, prompts, 16, draft=disturbed(model)) == generate(model, prompts, 16)


def drawn_counts(model, draft, prompt: list[int], new: int, sampling: Sampling, times: int):
    rows = generate(
        model,
        [prompt],
        new,
        sampling=sampling,
        draft=draft,
        num_draft_tokens=2,
        num_return_sequences=times,
        seed=3,
    )
    return collections.Counter(map(tuple, rows)), rows


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=1.0), Sampling(temperature=1.3, top_k=4, top_p=0.9)]
)
def test_samples_have_the_distribution_without_a_draft(sampling):
    """All texts of four tokens, by chi-square against the model's own probabilities."""
    V, new, times = 5, 4, 8192
    model = random_model(vocab_size=V, num_layers=1)
    prompt = [1, 3, 2]
    from jaxllm.generation.scores.settings import filter_logits

    texts = np.stack(np.meshgrid(*[np.arange(V)] * new, indexing="ij"), -1).reshape(-1, new)
    whole = np.concatenate([np.tile(prompt, (len(texts), 1)), texts], axis=1)
    logits = jax.jit(lambda tokens: model(tokens).logits)(whole)[:, len(prompt) - 1 : -1]
    scores = filter_logits(sampling, logits.reshape(-1, V)).reshape(-1, new, V)
    own = np.take_along_axis(np.asarray(jax.nn.softmax(scores)), texts[..., None], -1)[..., 0]
    probs = own.astype(np.float64).prod(axis=1)
    for size in (0.1, 1.0):
        counts, rows = drawn_counts(model, disturbed(model, size), prompt, new, sampling, times)
        assert 0 < sum(row.accepted for row in rows) < sum(row.drafted for row in rows)
        found = np.array([counts[tuple(text)] for text in texts.tolist()])
        assert found[probs == 0].sum() == 0
        expected = probs / probs.sum() * times
        is_rare = expected < 5
        groups = [
            np.append(x[~is_rare], x[is_rare].sum() if is_rare.any() else [])
            for x in (found, expected)
        ]
        groups = [x[groups[1] > 0] for x in groups]
        assert len(groups[0]) > 50
        assert chisquare(*groups).pvalue > 1e-3


@pytest.mark.exhaustive
def test_rows_do_not_affect_each_other():
    model = random_model(num_layers=1)
    draft, sampled = disturbed(model), Sampling(temperature=1.0, top_k=30)
    samplings = [sampled, Sampling(), sampled, Sampling(temperature=0.7)]
    options = {"draft": draft, "seed": [5, 6, 7, 8]}
    together = generate(model, PROMPTS, 20, sampling=samplings, **options)
    assert together[1] == generate(model, PROMPTS[1:2], 20)[0]
    for i, prompt in enumerate(PROMPTS):
        [alone] = generate(model, [prompt], 20, sampling=samplings[i], draft=draft, seed=[5 + i])
        assert alone == together[i]
        assert (alone.drafted, alone.accepted) == (together[i].drafted, together[i].accepted)


@pytest.mark.exhaustive
def test_a_mix_of_calls_needs_few_programs():
    model, draft = random_model(num_layers=1), random_model(num_layers=1)
    before = begin._cache_size() + advance._cache_size()
    for new in (3, 9, 16):
        generate(model, PROMPTS[:1], new, draft=draft, eos_ids=range(new))
        drawn = Sampling(temperature=1.0, top_p=0.9)
        generate(model, PROMPTS[:1], new, draft=draft, sampling=drawn, seed=new)
    assert begin._cache_size() + advance._cache_size() - before <= 1


def test_drafts_that_do_not_fit_are_refused_in_one_line():
    model = random_model(num_layers=1)

    def refused(draft, pattern: str, own=model, **options) -> None:
        with pytest.raises(UserError, match=pattern) as error:
            generate(own, PROMPTS, 20, draft=draft, **options)
        assert "\n" not in str(error.value)

    refused(random_model(vocab_size=95, num_layers=1), "vocab_size=95 is not the model's 96")
    refused(model, "num_draft_tokens=0 is less than 1", num_draft_tokens=0)
    refused(random_of(CONFIGS["encoder-decoder"]), "a EncoderDecoder and the model a Decoder")
    short = random_model(**LEARNED, max_len=20)
    refused(short, "the draft cannot follow: .*max_len=20")
    scaling = RopeScaling(kind="dynamic", factor=2.0, original_max_len=30)
    turning = random_model(num_layers=1, rope=RopeConfig(scaling=scaling))
    refused(turning, "texts of 37 tokens .* dynamic RoPE change: generate them without a draft")
    refused(model, "texts of 37 tokens", own=turning)
    assert len(generate(model, PROMPTS[:1], 9, draft=turning)[0]) == 9


@pytest.mark.exhaustive
def test_a_draft_of_nan_is_never_followed_and_a_model_of_nan_is_refused():
    from jaxllm.params import named_parameters, with_arrays

    model = random_model(num_layers=1)
    arrays = {name: v.get_value() * np.nan for name, v in named_parameters(model).items()}
    broken = with_arrays(model, arrays)
    drawn = Sampling(temperature=1.0)
    for sampling in (Sampling(), drawn):
        rows = generate(model, PROMPTS, 6, draft=broken, sampling=sampling)
        assert sum(row.accepted for row in rows) == 0 or sampling == Sampling()
        with pytest.raises(NonFiniteError):
            generate(broken, PROMPTS, 6, draft=model, sampling=sampling)
    assert generate(model, PROMPTS, 6, draft=broken) == generate(model, PROMPTS, 6)


@pytest.mark.exhaustive
def test_a_mesh_gives_the_same_tokens():
    from jaxllm.params import named_parameters, parameter_shardings, with_arrays
    from jaxllm.train import make_mesh

    model, mesh = random_model(num_layers=1), make_mesh(data=2, fsdp=2, tensor=2)

    def sharded(model):
        places = parameter_shardings(model, mesh)
        named = named_parameters(model).items()
        return with_arrays(model, {n: jax.device_put(v.get_value(), places[n]) for n, v in named})

    expected = generate(model, PROMPTS, 12)
    with jax.set_mesh(mesh):
        draft = sharded(disturbed(model))
        assert generate(sharded(model), PROMPTS, 12, draft=draft) == expected
