"""A pair of models that agree."""

import pytest

from jaxllm.interop import load_pretrained


@pytest.fixture(scope="module")
def pair(make_llama, tmp_path_factory):
    """A Llama and ours with its weights; not to be changed."""
    llama, folder = make_llama(num_hidden_layers=2), tmp_path_factory.mktemp("llama")
    llama.save_pretrained(folder)
    return llama, load_pretrained(folder, dtype="float32")


@pytest.fixture(scope="module")
def short(tokens):
    """A row of tokens that is long enough for what has no positions."""
    return tokens[:1, :64]
