"""Generation beside transformers, and many requests beside one after the other; float32."""

import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from decode import LLAMA
from side_by_side import Comparison, compare

from jaxllm.generation import Engine, Sampling, generate
from jaxllm.generation.scores.processors import choose
from jaxllm.generation.scores.settings import stack_settings
from jaxllm.interop import load_pretrained
from jaxllm.interop.families.huggingface.pre_norm.llama import write_config
from jaxllm.interop.reference.transformers_models import (
    generate_greedily,
    open_exported,
    save_random_llama,
)
from jaxllm.models import Model, with_scanned_layers

RNG = np.random.default_rng(0)
VOCAB, PREFILL, REQUESTS, SLOTS = 128_256, 1024, 48, 16


def run(rounds: int) -> list[Comparison]:
    """Compares drawing a token, reading a prompt, a batch, and many requests."""
    with tempfile.TemporaryDirectory() as folder:
        save_random_llama(write_config(LLAMA, {}), folder)
        theirs, _ = open_exported(folder)
        ours = with_scanned_layers(load_pretrained(folder), False)
    return [
        _draw(rounds),
        _read(rounds, ours, theirs),
        _batch(rounds, ours, theirs),
        _many(rounds, ours),
    ]


def _draw(rounds: int) -> Comparison:
    """Draws a token from a large vocabulary with top-p."""
    import torch
    from transformers import TopPLogitsWarper

    scores = (3 * RNG.standard_normal((1, VOCAB))).astype(np.float32)
    settings = stack_settings(VOCAB, [Sampling(temperature=1.0, top_p=0.9)])
    draw, ours = jax.jit(choose), jnp.asarray(scores)
    warp, theirs = TopPLogitsWarper(0.9), torch.tensor(scores)
    none: Any = torch.empty((1, 0), dtype=torch.long)
    return compare(
        "drawing with top-p 0.9 of 128k tokens",
        lambda: jax.block_until_ready(draw(ours, settings, np.zeros(1, np.int32))),
        lambda: torch.multinomial(torch.softmax(warp(none, theirs), -1), 1),
        rounds=rounds,
        target=1.0,
    )


def _read(rounds: int, ours: Model, theirs: object) -> Comparison:
    prompt = RNG.integers(0, LLAMA.vocab_size, PREFILL).tolist()
    return compare(
        f"reading {PREFILL} tokens, 19M, B 1, 1 new token",
        lambda: generate(ours, [prompt], 1),
        lambda: generate_greedily(theirs, [prompt], 1),
        rounds=rounds,
        target=1.0,
    )


def _batch(rounds: int, ours: Model, theirs: Any) -> Comparison:
    import torch

    prompts = RNG.integers(0, LLAMA.vocab_size, (8, 32)).tolist()
    tokens = torch.tensor(prompts)
    settings = {"max_new_tokens": 64, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    def by_transformers() -> list[list[int]]:
        out = theirs.generate(tokens, attention_mask=torch.ones_like(tokens), **settings)
        return out[:, 32:].tolist()

    assert generate(ours, prompts, 64) == by_transformers()
    return compare(
        "greedy decoding, 19M, B 8, 64 new tokens",
        lambda: generate(ours, prompts, 64),
        by_transformers,
        rounds=rounds,
        target=1.6,
    )


def _many(rounds: int, model: Model) -> Comparison:
    """Requests of mixed lengths in slots, and one after the other; the tokens are the same."""
    requests = [
        (RNG.integers(0, LLAMA.vocab_size, RNG.integers(4, 33)).tolist(), int(RNG.integers(16, 65)))
        for _ in range(REQUESTS)
    ]

    def in_slots() -> list[list[int]]:
        engine = Engine(model, slots=SLOTS, max_len=128)
        numbers = [engine.submit(prompt, new) for prompt, new in requests]
        found = engine.run()
        return [found[number] for number in numbers]

    def one_by_one() -> list[list[int]]:
        return [generate(model, [prompt], new)[0] for prompt, new in requests]

    assert in_slots() == one_by_one()
    return compare(
        f"{REQUESTS} requests, 19M, in {SLOTS} slots; peer: one by one",
        in_slots,
        one_by_one,
        rounds=rounds,
        target=3.0,
    )
