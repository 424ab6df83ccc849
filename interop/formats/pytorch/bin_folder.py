"""Hugging Face folders with `pytorch_model.bin`: one file, or shards with an index file."""

from pathlib import Path

from jaxllm.interop.formats.hf_index import read_single_or_indexed
from jaxllm.interop.formats.stored_tensor import StoredTensor

from . import torch_zip
from .wrapped_names import strip_wrappers

SINGLE_NAME = "pytorch_model.bin"
INDEX_NAME = "pytorch_model.bin.index.json"


def read_checkpoint(path: Path) -> dict[str, StoredTensor]:
    """Locates every tensor of a folder, by name: of a single file, else of an index file.

    Names lose the prefixes of training wrappers; see `wrapped_names`.

    Raises:
        CheckpointError: the index file or a shard is damaged. Lists every problem.
    """
    return strip_wrappers(
        read_single_or_indexed(path, SINGLE_NAME, INDEX_NAME, torch_zip.read_header)
    )
