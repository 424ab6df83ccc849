"""Tiny Llamas of transformers with distinct random weights, and their conversion to JAX."""

from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from jaxllm.interop import load_pretrained
from jaxllm.models.decoder import Decoder

TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attn_implementation": "eager",
}


@pytest.fixture(scope="session")
def make_llama() -> Callable:
    """Builds Llamas of transformers; no two weights are equal, and no norm scale is one."""
    return _make_llama


def _make_llama(seed: int = 0, std: float = 0.15, **config):
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**TINY, **config}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * drawn if name.endswith("norm.weight") else std * drawn)
    return model


@pytest.fixture
def convert(tmp_path) -> Callable[..., Decoder]:
    """Converts a Llama of transformers to a JAX model."""
    transformers.utils.logging.disable_progress_bar()

    def convert(llama) -> Decoder:
        llama.save_pretrained(tmp_path / "llama")
        return load_pretrained(tmp_path / "llama", dtype="float32")

    return convert


@pytest.fixture(scope="session")
def tokens() -> np.ndarray:
    """Two rows of 320 token ids."""
    return np.random.default_rng(0).integers(0, TINY["vocab_size"], (2, 320))
