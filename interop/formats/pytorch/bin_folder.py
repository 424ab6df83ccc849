"""Hugging Face folders with `pytorch_model.bin`: one file, or shards with an index file."""

from pathlib import Path

from jaxllm.interop.formats.hf_index import read_single_or_indexed
from jaxllm.interop.formats.stored_tensor import StoredTensor

from .saved import torch_file

SINGLE_NAME = "pytorch_model.bin"
INDEX_NAME = "pytorch_model.bin.index.json"


def read_checkpoint(path: Path) -> dict[str, StoredTensor]:
    """Locates every tensor of a folder, by name: of a single file, else of an index file.

    Raises:
        CheckpointError: the index file or a shard is damaged. Lists every problem.
    """
    return read_single_or_indexed(path, SINGLE_NAME, INDEX_NAME, torch_file.read_header)
