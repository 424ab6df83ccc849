"""Latent attention: decoding from latents equals expanded keys and values; its cache is small."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, random_model, relative_l2

from jaxllm.config import LatentConfig, RopeConfig
from jaxllm.generation import Engine, beam_search, generate
from jaxllm.layers.attention.cache import LatentCache
from jaxllm.lora.attach import add_lora
from jaxllm.lora.config import LoraConfig
from jaxllm.models import with_scanned_layers

TOLERANCE = 1e-5  # relative L2, float32
LATENT = LatentConfig(kv_rank=20, query_rank=24, rope_dim=6, value_dim=10)
CASES = {
    "latent queries, pairs": {
        "attention.latent": LATENT,
        "rope": RopeConfig(layout="interleaved"),
        "attention.scale": 0.3,
    },
    "whole queries, biases": {
        "attention.latent": LatentConfig(kv_rank=20, rope_dim=6, value_dim=10),
        "attention.qkv_bias": True,
        "attention.out_bias": True,
    },
}
TOKENS = np.random.default_rng(0).integers(0, TINY.vocab_size, (2, 30))


def latent_model(name: str = "latent queries, pairs", **changes):
    return random_model(
        {"num_kv_heads": TINY.num_heads, **CASES[name], **changes}, scan_layers=False
    )


@jax.jit
def logits_of(model, tokens):
    return model(tokens).logits


@jax.jit
def step(model, tokens, positions, cache):
    return model(tokens, positions=positions, cache=cache)


@jax.jit
def packed_logits(model, tokens, ids, places):
    return model(tokens, segment_ids=ids, positions=places).logits


def in_pieces(model, sizes: list[int], cache) -> np.ndarray:
    """Returns the logits of `TOKENS` given piece by piece with a cache."""
    start, logits = 0, []
    for size in sizes:
        part = TOKENS[:, start : start + size]
        out = step(model, part, jnp.arange(start, start + size)[None], cache)
        cache, start = out.cache, start + size
        logits.append(out.logits)
    return np.concatenate(logits, axis=1)


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", CASES)
def test_decoding_from_latents_equals_expanded_keys_and_values(name):
    model = latent_model(name)
    found = in_pieces(model, [7, 1, 1, 21], model.init_cache(2, 30))
    assert relative_l2(found, logits_of(model, TOKENS)) <= TOLERANCE


@pytest.mark.exhaustive
def test_factors_of_lora_count_in_latents_too():
    model = add_lora(latent_model(), LoraConfig(rank=2, targets=("kv_up",)))
    rng = np.random.default_rng(1)
    for layer in model.layers.values():
        lora = layer.attn.kv_up.lora
        for name in ("a", "b"):
            shape = getattr(lora, name).shape
            drawn = jnp.asarray(0.2 * rng.standard_normal(shape), jnp.float32)
            setattr(lora, name, getattr(lora, name).replace(drawn))
    whole = logits_of(model, TOKENS)
    assert relative_l2(whole, logits_of(latent_model(), TOKENS)) > 0.01
    found = in_pieces(model, [7, 1, 22], model.init_cache(2, 30))
    assert relative_l2(found, whole) <= TOLERANCE


def test_a_cache_holds_the_numbers_that_the_paper_says():
    model = latent_model()
    numbers = (LATENT.kv_rank + LATENT.rope_dim) * TINY.num_layers  # of each token
    cache = model.init_cache(3, 50)
    assert all(isinstance(one, LatentCache) for one in cache.values())
    assert sum(x.nbytes for x in jax.tree.leaves(cache)) == 3 * 50 * numbers * 4
    half = model.init_cache(3, 50, dtype="bfloat16")
    assert sum(x.nbytes for x in jax.tree.leaves(half)) == 3 * 50 * numbers * 2
    small = model.init_cache(3, 50, dtype="int8")  # and a scale of each token and layer
    assert sum(x.nbytes for x in jax.tree.leaves(small)) == 3 * 50 * (numbers + 4 * TINY.num_layers)


@pytest.mark.cases(1)
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.01), ("int8", 0.03)])
def test_a_cache_may_be_in_narrower_numbers(dtype, tolerance):
    model = latent_model()
    found = in_pieces(model, [10, 20], model.init_cache(2, 30, dtype=dtype))
    assert relative_l2(found, logits_of(model, TOKENS)) < tolerance


def test_packed_documents_are_as_if_alone():
    model = latent_model()
    ids = np.repeat([[1, 2]], [11, 19], axis=1)
    places = np.concatenate([np.arange(11), np.arange(19)])[None]
    packed = packed_logits(model, TOKENS[:1], ids, places)
    for start, stop in ((0, 11), (11, 30)):
        alone = logits_of(model, TOKENS[:1, start:stop])
        assert relative_l2(packed[:, start:stop], alone) <= TOLERANCE


@pytest.mark.exhaustive
def test_a_kernel_computes_the_same():
    """Its values are as wide as keys: narrower ones are padded."""
    plain, kernel = (latent_model(**{"attention.kernel": one}) for one in ("blocks", "triton"))
    assert relative_l2(logits_of(kernel, TOKENS), logits_of(plain, TOKENS)) <= TOLERANCE


@pytest.mark.exhaustive
def test_prompts_of_several_lengths_are_continued_as_if_alone():
    model, rng = latent_model(), np.random.default_rng(2)
    prompts = [rng.integers(0, TINY.vocab_size, length).tolist() for length in (5, 17, 1)]
    together = generate(model, prompts, 8)
    assert together == [generate(model, [prompt], 8)[0] for prompt in prompts]
    assert together == generate(with_scanned_layers(model, True), prompts, 8)


@pytest.mark.exhaustive
def test_requests_enter_slots_of_latents_as_others_leave():
    model, rng = latent_model(), np.random.default_rng(3)
    prompts = [rng.integers(0, TINY.vocab_size, length).tolist() for length in (5, 9, 1, 7, 3)]
    engine = Engine(model, slots=2, max_len=32)
    numbers = [engine.submit(prompt=prompt, max_new_tokens=6) for prompt in prompts]
    found = engine.run()
    assert [list(found[number]) for number in numbers] == generate(model, prompts, 6)


@pytest.mark.exhaustive
def test_one_beam_over_latents_is_greedy():
    model = latent_model()
    prompts = [TOKENS[0, :7].tolist(), TOKENS[1, :3].tolist()]
    assert beam_search(model, prompts, 6, num_beams=1) == generate(model, prompts, 6)
    # The best of several beams is at least as likely as the greedy continuation.
    for prompt, beam in zip(prompts, beam_search(model, prompts, 6, num_beams=4), strict=True):
        [greedy] = generate(model, [prompt], 6)
        scores = [log_probability(model, prompt, tokens) for tokens in (beam, greedy)]
        assert scores[0] >= scores[1] - 1e-4


def log_probability(model, prompt: list[int], tokens: list[int]) -> float:
    """Returns the log-probability of a continuation."""
    whole = np.asarray([prompt + tokens])
    each = jax.nn.log_softmax(logits_of(model, whole)[0, len(prompt) - 1 : -1])
    return float(each[np.arange(len(tokens)), np.asarray(tokens)].sum())
