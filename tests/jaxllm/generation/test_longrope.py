"""Generation past the length at which LongRoPE switches to its long frequencies.

Keys cached at the short frequencies would be wrong, so the text is read again, once.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hf_cases import CASES
from tiny import random_model
from transformers import AutoModelForCausalLM

from jaxllm.config import AttentionConfig, LayerKind, RopeConfig, RopeScaling
from jaxllm.generation import beam_search, generate
from jaxllm.generation.loop import begin
from jaxllm.interop import load_pretrained
from jaxllm.models import with_scanned_layers

TURN, NEW = 20, 24
RNG = np.random.default_rng(0)
# They switch at the first token, midway, at the last token, or start beyond the switch.
PROMPTS = [RNG.integers(1, 96, length).tolist() for length in (20, 9, 1, 30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Phi-3 with an early switch; its config gives the original length in two places."""
    case = CASES["phi3/longrope-beyond"]
    parameters = {
        **case.changes["rope_parameters"],
        "original_max_position_embeddings": TURN,
    }
    changes = {
        **case.changes,
        "num_hidden_layers": 2,
        "original_max_position_embeddings": TURN,
        "rope_parameters": parameters,
        "sliding_window": 100,
    }
    path = tmp_path_factory.mktemp("longrope") / "phi3"
    dataclasses.replace(case, changes=changes).build().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return with_scanned_layers(load_pretrained(folder), False)


@pytest.fixture(scope="module")
def original(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def by_transformers(original, prompt: list[int], **options) -> list[int]:
    tokens = torch.tensor([prompt])
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, **options}
    out = original.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
    return out[0, len(prompt) :].tolist()


@pytest.mark.exhaustive
def test_greedy_tokens_match_transformers(model, original):
    expected = [by_transformers(original, prompt) for prompt in PROMPTS]
    assert generate(model, PROMPTS, NEW) == expected
    before = begin._cache_size()
    assert [generate(model, [prompt], NEW)[0] for prompt in PROMPTS[1:3]] == expected[1:3]
    assert begin._cache_size() - before == 1


@pytest.mark.exhaustive
def test_beam_search_matches_transformers(model, original):
    expected = [by_transformers(original, prompt, num_beams=3) for prompt in PROMPTS[:2]]
    assert beam_search(model, PROMPTS[:2], NEW, num_beams=3) == expected


@pytest.mark.exhaustive
def test_ring_caches_are_refilled_at_the_switch():
    """Layers with windows and chunks use ring caches; compares with uncached decoding."""
    scaling = RopeScaling(
        kind="longrope",
        factor=4.0,
        original_max_len=TURN,
        short_factor=tuple(1 + RNG.random(8)),
        long_factor=tuple(1 + 20 * RNG.random(8)),
    )
    pattern = (LayerKind(attention="window"), LayerKind(), LayerKind(attention="chunk"))
    model = random_model(
        rope=RopeConfig(scaling=scaling),
        pattern=pattern,
        attention=AttentionConfig(window=7, chunk=6),
    )

    @jax.jit
    def forward(tokens, length):
        is_token = np.arange(64)[None] < length
        positions = jnp.where(is_token, np.arange(64)[None], -1)
        return model(tokens, segment_ids=is_token.astype(int), positions=positions).logits

    def by_hand(tokens: list[int]) -> list[int]:
        length = len(tokens)
        for _ in range(NEW):
            padded = np.zeros((1, 64), np.int32)
            padded[0, : len(tokens)] = tokens
            logits = forward(padded, np.int32(len(tokens)))[0, len(tokens) - 1]
            tokens = [*tokens, int(logits.argmax())]
        return tokens[length:]

    assert generate(model, PROMPTS, NEW) == [by_hand(prompt) for prompt in PROMPTS]
