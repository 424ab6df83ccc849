"""A small Llama in memory, with tied heads or not, and its AdamW after some steps."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch_training
import transformers
from hf_case import SIZES, randomize


class Trained(NamedTuple):
    """A module, its optimizer, and batches to train it on."""

    module: Any
    optimizer: Any
    batches: list[dict]


@pytest.fixture(scope="session")
def make_llama():
    """Builds a Llama with random numbers in every tensor."""

    def make(seed: int = 0, **changes: Any) -> Any:
        config = transformers.LlamaConfig(**SIZES | {"num_hidden_layers": 2} | changes)
        return randomize(transformers.LlamaForCausalLM(config), seed).eval()

    return make


@pytest.fixture
def trained(make_llama) -> Trained:
    """A Llama after two of four steps of AdamW."""
    module = make_llama()
    rng = np.random.default_rng(3)
    shape = (2, 24)
    batches = [
        {"tokens": rng.integers(0, 96, shape), "mask": np.ones((2, 23), np.float32)}
        for _ in range(4)
    ]
    optimizer = torch_training.adamw(module, named=False)
    list(torch_training.steps(module, optimizer, batches[:2], [3e-3] * 2))
    return Trained(module, optimizer, batches)
