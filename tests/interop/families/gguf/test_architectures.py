"""The table of architectures: known to llama.cpp, and with names that llama.cpp gives tensors."""

import pytest

gguf = pytest.importorskip("gguf")

from jaxllm.interop.families import FAMILIES
from jaxllm.interop.families.gguf.architectures import (
    ARCHITECTURES,
    MIXTRAL,
    VARIANTS,
    find_architecture,
)

OLD = {"blk.#.ffn_gate.@", "blk.#.ffn_down.@", "blk.#.ffn_up.@"}  # of Mixtral's first files


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_names_are_those_of_llama_cpp(name):
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    kinds = set(gguf.MODEL_TENSORS[arch])
    known = {gguf.TENSOR_NAMES[kind].replace("{bid}", "#") for kind in kinds}
    known |= {gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.OUTPUT]}  # of models with a head of their own
    assert set(ARCHITECTURES[name].names) <= known


def test_a_llama_with_experts_is_a_mixtral():
    kinds = gguf.MODEL_TENSORS[gguf.MODEL_ARCH.LLAMA]
    known = {gguf.TENSOR_NAMES[kind].replace("{bid}", "#") for kind in kinds}
    assert set(MIXTRAL.names) - OLD <= known


def test_every_architecture_is_a_hugging_face_family():
    types = {family.model_type for family in FAMILIES if family.format == "hf"}
    assert {one.model_type for one in (*ARCHITECTURES.values(), *VARIANTS.values())} <= types


@pytest.mark.parametrize(
    ("name", "tensor", "expected"),
    [
        ("llama", "blk.0.ffn_gate.weight", ARCHITECTURES["llama"]),
        ("llama", "blk.0.ffn_gate_inp.weight", MIXTRAL),
        ("t5", "enc.blk.0.ffn_up.weight", ARCHITECTURES["t5"]),
        ("t5encoder", "enc.blk.0.ffn_gate.weight", VARIANTS["t5encoder"]),
        ("bert", "blk.0.ffn_gate.weight", None),
        (3, "blk.0.ffn_gate.weight", None),
    ],
)
def test_tensors_tell_the_variants_of_an_architecture(name, tensor, expected):
    assert find_architecture(name, {tensor}) is expected


@pytest.mark.parametrize(
    ("name", "layers", "expected"), [("gemma2", 26, 256), ("gemma2", 46, 144), ("gemma3", 62, 168)]
)
def test_the_largest_gemmas_scale_queries_by_their_width(name, layers, expected):
    width = {26: 2304, 46: 4608, 62: 5376}[layers]
    heads, head_dim = (8, 256) if layers == 26 else (32, 128)
    config = ARCHITECTURES[name].read_fields(
        {
            "block_count": layers,
            "embedding_length": width,
            "attention.head_count": heads,
            "attention.key_length": head_dim,
        }
    )
    assert config["query_pre_attn_scalar"] == expected
