"""A reference, a JAX model with its weights, and short inputs."""

import pytest

from jaxllm.interop import load_pretrained


@pytest.fixture(scope="module")
def pair(make_llama, tmp_path_factory):
    """A Llama and the JAX model with its weights. Not to be changed."""
    llama, folder = make_llama(num_hidden_layers=2), tmp_path_factory.mktemp("llama")
    llama.save_pretrained(folder)
    return llama, load_pretrained(folder, dtype="float32")


@pytest.fixture(scope="module")
def short(tokens):
    """A row of tokens, long enough for tests that do not depend on positions."""
    return tokens[:1, :64]
