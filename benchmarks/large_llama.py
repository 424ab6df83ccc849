"""Writes a 1.5 GB random Llama checkpoint tensor by tensor, without holding it in memory."""

from pathlib import Path

import numpy as np

from jaxllm.config import DecoderConfig, NumericsConfig, with_fields
from jaxllm.interop.formats.file_writer import write_files
from jaxllm.interop.formats.lazy_tensor import TensorSource
from jaxllm.interop.loading.model_arrays import ModelArrays
from jaxllm.interop.rules.boxes import Box, box_shape
from jaxllm.interop.saving.export import plan_export, possible_families
from jaxllm.models import build_abstract
from jaxllm.params import parameter_shapes, stacked_layers

# 1.52 GB in bfloat16.
LLAMA = DecoderConfig(
    vocab_size=32000,
    embed_dim=2048,
    num_layers=14,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    mlp_dim=5632,
    max_len=2048,
)


def save_large_llama(config: DecoderConfig, folder: Path, max_shard: int) -> None:
    """Writes a Hugging Face folder with random bfloat16 weights.

    Args:
        config: the sizes of the model.
        folder: created by this function.
        max_shard: the maximum size of a file, in bytes.
    """
    config = with_fields(config, numerics=NumericsConfig(param_dtype="bfloat16", dtype="bfloat16"))
    model, dtype = build_abstract(config), np.dtype("bfloat16")
    rng = np.random.default_rng(0)

    def draw(box: Box) -> np.ndarray:
        # Bit patterns of numbers between 2^-63 and 2.
        drawn = rng.integers(0x2000, 0x4000, box_shape(box), np.uint16)
        return drawn.view(dtype)

    arrays = {
        name: TensorSource(dtype, shape, draw) for name, shape in parameter_shapes(model).items()
    }
    source = ModelArrays(config, None, stacked_layers(model), arrays)
    export = plan_export(source, possible_families(None, "hf", None), None, max_shard)
    folder.mkdir(parents=True)
    write_files(folder, export.files, export.tensors)
    for name, text in export.texts.items():
        (folder / name).write_bytes(text)
