"""GGUF files of Hugging Face models, written as llama.cpp writes them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from jaxllm.interop.families.gguf.architectures import ARCHITECTURES, VARIANTS

KINDS = gguf.GGMLQuantizationType
# Those whose blocks `gguf` can only decode; any bytes are valid blocks.
DECODED_ONLY = (KINDS.Q2_K, KINDS.Q3_K, KINDS.Q4_K, KINDS.Q5_K, KINDS.Q6_K)


def write_gguf(
    path: Path,
    model: Any,
    name: str,
    fields: dict[str, Any],
    kind: Any = KINDS.F32,
    add_tokenizer: Callable[[Any], None] = lambda writer: None,
) -> None:
    """Writes a model of transformers as a GGUF file.

    Args:
        path: the file.
        model: the model; its names of tensors are mapped by `gguf`.
        name: the architecture's name in the file.
        fields: the fields of the architecture, without its name.
        kind: the type of the blocks of all matrices.
        add_tokenizer: adds the fields of a tokenizer to the writer.
    """
    writer = gguf.GGUFWriter(path, name)
    for key, value in fields.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](f"{name}.{key}", value)
    add_tokenizer(writer)
    for target, array in tensors_of(model, name).items():
        is_matrix = array.ndim > 1 and not target.endswith("ffn_gate_inp.weight")
        data = blocks_of(array, kind) if is_matrix else array
        writer.add_tensor(target, data, raw_dtype=kind if is_matrix else KINDS.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def blocks_of(array: np.ndarray, kind: Any) -> np.ndarray:
    """Quantizes an array; for types that `gguf` does not encode, returns random blocks."""
    if kind not in DECODED_ONLY:
        return gguf.quantize(array, kind)
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    shape = (*array.shape[:-1], array.shape[-1] // block * nbytes)
    return np.random.default_rng(0).integers(0, 60, shape, np.uint8)


def tensors_of(model: Any, name: str) -> dict[str, np.ndarray]:
    """Returns the tensors as llama.cpp's converter stores them, by their names in the file."""
    config = model.config
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    known = [ARCHITECTURES[name], *VARIANTS.values()]
    architecture = next(one for one in known if one.model_type == config.model_type)
    found: dict[str, np.ndarray] = {}
    for full, parameter in model.state_dict().items():
        stem, _, suffix = full.rpartition(".")
        array = parameter.float().numpy()
        if config.tie_word_embeddings and stem == "lm_head":
            continue
        if stem.endswith("coder.embed_tokens"):  # T5 has its only embedding as `shared` too
            continue
        if stem.endswith("experts"):  # transformers 5 fuses experts: E (G I) D
            layer, parts = stem.split(".")[2], {"down": array}
            if suffix.startswith("gate_up"):
                gate, up = np.split(array, 2, axis=1)
                parts = {"gate": gate, "up": up}
            for part, values in parts.items():
                found[f"blk.{layer}.ffn_{part}_exps.weight"] = np.ascontiguousarray(values)
            continue
        target = f"{names.get_name(stem)}.{suffix}"
        parts = target.split(".")
        pattern = ".".join("#" if part.isdigit() else part for part in parts[:-1])
        if pattern in architecture.interleaved:
            heads = getattr(config, architecture.interleaved[pattern])
            halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        if pattern.endswith(architecture.shifted):
            array = array + np.float32(1)
        if pattern in architecture.transposed and array.ndim == 2:
            array = array.T
        found[target] = np.ascontiguousarray(array)
    return found
