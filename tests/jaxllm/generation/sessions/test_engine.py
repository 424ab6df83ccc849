"""An engine gives each request the tokens that it gets alone, whatever else runs beside it."""

import numpy as np
import pytest
from kinds import CONFIGS
from tiny import random_model, random_of

from jaxllm.config import AttentionConfig, LayerKind
from jaxllm.errors import UserError
from jaxllm.generation import Engine, Sampling, TokenRules, generate
from jaxllm.generation.loop import advance, begin

RNG = np.random.default_rng(0)


def requests(count: int) -> list[dict]:
    """Requests of mixed lengths and settings."""
    samplings = [Sampling(), Sampling(temperature=0.9, top_p=0.8), Sampling(presence_penalty=0.7)]
    rules = [TokenRules(), TokenRules(no_repeat_ngram_size=2, suppress=(5,))]
    return [
        {
            "prompt": RNG.integers(0, 96, RNG.integers(1, 15)).tolist(),
            "max_new_tokens": int(RNG.integers(1, 17)),
            "sampling": samplings[i % 3],
            "rules": rules[i % 2] if i != 7 else TokenRules(bad_words=((1, 2, 3), (4,))),
            "seed": i,
        }
        for i in range(count)
    ]


@pytest.mark.parametrize(
    "count", [pytest.param(40), pytest.param(200, marks=pytest.mark.exhaustive)]
)
def test_many_requests_in_few_slots_give_the_tokens_of_one_by_one(count):
    model = random_model(num_layers=1)
    given, ends = requests(count), [*range(0, 96, 9)]
    engine = Engine(model, slots=16, max_len=32, eos_ids=ends)
    before = begin._cache_size() + advance._cache_size()
    numbers = [engine.submit(**request) for request in given]
    found = engine.run()
    assert sorted(found) == numbers
    # Prompts of one size, and slots with two sizes of biased sequences.
    assert begin._cache_size() + advance._cache_size() - before <= 4
    assert engine.run() == {}
    for number, request in zip(numbers, given, strict=True):
        [alone] = generate(
            model,
            [request["prompt"]],
            request["max_new_tokens"],
            sampling=request["sampling"],
            rules=request["rules"],
            seed=request["seed"],
            eos_ids=ends,
            return_logprobs=True,
        )
        assert (found[number], found[number].ended) == (alone, alone.ended)
        np.testing.assert_allclose(found[number].log_probs, alone.log_probs, atol=1e-5)


@pytest.mark.exhaustive
def test_slots_of_ring_caches_are_filled_anew():
    pattern = (LayerKind(attention="window"), LayerKind(attention="chunk"))
    model = random_model(
        num_layers=2, pattern=pattern, attention=AttentionConfig(window=5, chunk=6)
    )
    engine = Engine(model, slots=2, max_len=64)
    prompts = [RNG.integers(0, 96, length).tolist() for length in (12, 2, 9, 15, 1)]
    numbers = [engine.submit(prompt, 20) for prompt in prompts]
    found = engine.run()
    assert [found[number] for number in numbers] == [generate(model, [p], 20)[0] for p in prompts]


def test_requests_may_come_while_others_run():
    engine = Engine(random_model(num_layers=1), slots=1, max_len=32)
    first = engine.submit([1, 2], 12)
    assert engine.step() == {}
    second = engine.submit([3], 4)
    found = engine.run()
    assert len(found[first]) == 12
    assert len(found[second]) == 4


def test_what_cannot_be_generated_is_refused_when_it_is_submitted():
    engine = Engine(random_model(num_layers=1), slots=1, max_len=20)
    with pytest.raises(UserError, match="max_new_tokens=30 are more than the engine's 32 tokens"):
        engine.submit([1, 2, 3], 30)
    with pytest.raises(UserError, match="suppress has token 96"):
        engine.submit([1], 2, rules=TokenRules(suppress=(96,)))
    assert engine.run() == {}
    with pytest.raises(UserError, match="slots=0"):
        Engine(random_model(num_layers=1), slots=0, max_len=20)
    with pytest.raises(UserError, match="no room for sources"):
        Engine(random_of(CONFIGS["encoder-decoder"]), slots=1, max_len=20)
