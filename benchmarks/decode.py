"""Greedy decoding, 19M-parameter Llama, float32: jaxllm against `generate` of transformers."""

import tempfile

import numpy as np
from side_by_side import Comparison, compare

from jaxllm.config import DecoderConfig
from jaxllm.generation import generate
from jaxllm.interop import load_pretrained
from jaxllm.interop.families.huggingface.pre_norm.llama import write_config
from jaxllm.interop.reference.transformers_models import (
    generate_greedily,
    open_exported,
    save_random_llama,
)
from jaxllm.models import with_scanned_layers

LLAMA = DecoderConfig(
    vocab_size=8192,
    embed_dim=384,
    num_layers=8,
    num_heads=6,
    num_kv_heads=2,
    head_dim=64,
    mlp_dim=1024,
    max_len=2048,
)
PROMPT, NEW = 32, 256


def run(rounds: int) -> Comparison:
    """Decodes one prompt with both, which must return the same tokens."""
    prompt = np.random.default_rng(0).integers(0, LLAMA.vocab_size, PROMPT).tolist()
    with tempfile.TemporaryDirectory() as folder:
        save_random_llama(write_config(LLAMA, {}), folder)
        theirs, _ = open_exported(folder)
        ours = with_scanned_layers(load_pretrained(folder), False)
    assert generate(ours, [prompt], NEW) == generate_greedily(theirs, [prompt], NEW)
    return compare(
        "greedy decoding, 19M, B 1, 256 new tokens",
        lambda: generate(ours, [prompt], NEW),
        lambda: generate_greedily(theirs, [prompt], NEW),
        rounds=rounds,
        target=2.0,
    )
