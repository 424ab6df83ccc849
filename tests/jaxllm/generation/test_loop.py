"""The decoding loop: few programs for any mix of settings, and bounded memory for long prompts."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tiny import random_model

from jaxllm.generation import Sampling, TokenRules, generate
from jaxllm.generation.loop import Program, advance, begin
from jaxllm.generation.scores.settings import stack_settings
from jaxllm.generation.weights import _unstack
from jaxllm.models import with_scanned_layers

RNG = np.random.default_rng(0)


def test_a_mix_of_calls_needs_few_programs():
    """At most one for each bucket of sizes, and two more: to unstack layers, and to go on."""
    model = random_model(num_layers=1, vocab_size=90, seed=3)
    programs = lambda: sum(f._cache_size() for f in (begin, advance, _unstack))  # noqa: E731
    before, buckets = programs(), set()
    for call in range(24):
        rows, new = int(RNG.choice([1, 3, 4])), int(RNG.integers(1, 17))
        longest = int(RNG.integers(1, 17))
        prompts = [RNG.integers(0, 90, RNG.integers(1, longest + 1)).tolist() for _ in range(rows)]
        prompts[0] = RNG.integers(0, 90, longest).tolist()
        drawn = {"temperature": RNG.random(), "top_k": int(RNG.integers(1, 90))}
        found = generate(
            model,
            prompts,
            new,
            sampling=[Sampling(**drawn, top_p=0.9) if call % 2 else Sampling()] * rows,
            rules=TokenRules(no_repeat_ngram_size=call % 4, suppress=tuple(range(call))),
            eos_ids=range(30, 30 + call),
            seed=call,
            stream=(lambda row, tokens: None) if call % 7 == 6 and rows == 1 else None,
        )
        assert len(found) == rows
        buckets.add(1 if rows == 1 else 4)
    assert programs() - before <= 2 + len(buckets)


def test_prefill_needs_no_more_memory_than_a_plain_pass_and_the_cache():
    T = 2048
    model = with_scanned_layers(random_model(num_layers=1, max_len=4096), False)
    graphdef, state = nnx.split(model)
    params, settings = nnx.to_pure_dict(state), stack_settings(96, [Sampling()])
    tokens, lengths = np.zeros((1, T), np.int32), np.array([T], np.int32)

    @jax.jit
    def plain(params, tokens_BT):
        x_BTD, _, _ = nnx.merge(graphdef, nnx.State(params)).hidden(tokens_BT)
        return x_BTD[:, -1]

    def peak(lowered) -> int:
        memory = lowered.compile().memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes

    arguments = (params, tokens, lengths, settings, np.int32(1))
    found = peak(begin.lower(Program(graphdef), 16, *arguments))
    cache = jax.eval_shape(lambda: model.init_cache(1, T + 16))
    cache_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
    # Beside them there are texts, log-probabilities, positions and segments: 32 bytes a token.
    assert found <= peak(plain.lower(params, jnp.asarray(tokens))) + cache_bytes + 32 * (T + 16)
