"""Fixtures: checkpoints for the command tests."""

from pathlib import Path

import pytest
from tiny import random_model

from jaxllm.interop import save_pretrained


@pytest.fixture(scope="session")
def byte_model(tmp_path_factory) -> Path:
    """A Hugging Face checkpoint of a model with a byte vocabulary."""
    folder = tmp_path_factory.mktemp("bytes") / "llama"
    save_pretrained(random_model(vocab_size=256, head_dim=8), folder)
    return folder
