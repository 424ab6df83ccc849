"""Copies are compared bit by bit, including NaNs and the sign of zero."""

import numpy as np
import pytest
import torch
import transformers
from hf_case import randomize, stored
from safetensors.torch import load_file, save_file
from tiny import relative_l2

from jaxllm.interop import CheckpointError, load_pretrained, save_pretrained
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.loading.tied_tensors import have_same_bits


def place(path, array: np.ndarray) -> StoredTensor:
    path.write_bytes(array.tobytes())
    return StoredTensor(path.name, array.dtype, array.shape, path, 0)


@pytest.mark.parametrize("max_bytes", [1, 20, 1 << 20])
def test_equality_is_bitwise(tmp_path, max_bytes):
    array = np.array([[np.nan, 0.0, 1.0], [np.inf, -0.0, 2.0]], np.float32)
    one, other = place(tmp_path / "a", array), place(tmp_path / "b", array)
    assert have_same_bits(one, other, max_bytes)
    changed = array.copy()
    changed[1, 1] = 0.0  # equal in numbers, not in bits
    assert not have_same_bits(one, place(tmp_path / "c", changed), max_bytes)


def test_strided_view_can_equal_a_contiguous_tensor(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    place(tmp_path / "a", array)
    view = StoredTensor("t", array.dtype, (3, 2), tmp_path / "a", 0, strides=(1, 3))
    assert have_same_bits(view, place(tmp_path / "b", np.ascontiguousarray(array.T)), 8)


def test_other_dtype_or_shape_is_unequal(tmp_path):
    one = place(tmp_path / "a", np.zeros((2, 3), np.float32))
    assert not have_same_bits(one, place(tmp_path / "b", np.zeros((3, 2), np.float32)), 64)
    assert not have_same_bits(one, place(tmp_path / "c", np.zeros((2, 3), np.int32)), 64)


SHARED, COPY = "shared.weight", "encoder.embed_tokens.weight"
BOTH = {"vocab_size": 96, "d_model": 48}
T5 = {**BOTH, "d_kv": 16, "d_ff": 56, "num_layers": 1, "num_heads": 6}
BART = {**BOTH, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4}
BART |= {"decoder_attention_heads": 6, "encoder_ffn_dim": 56, "decoder_ffn_dim": 40}


def without_original(tensors):
    prefix = "" if SHARED in tensors else "model."
    tensors[prefix + COPY] = tensors.pop(prefix + SHARED)


def with_own_head(tensors):
    tensors["lm_head.weight"] = torch.randn(96, 48, generator=torch.Generator().manual_seed(3))


@pytest.mark.cases(1)
@pytest.mark.parametrize("edit", [without_original, with_own_head])
@pytest.mark.parametrize(("name", "sizes"), [("T5", T5), ("Bart", BART)])
def test_what_is_stored_decides_as_in_transformers(name, sizes, edit, tmp_path, caplog):
    config = getattr(transformers, f"{name}Config")(**sizes)
    original = randomize(getattr(transformers, f"{name}ForConditionalGeneration")(config))
    file = tmp_path / "original" / "model.safetensors"
    original.save_pretrained(file.parent)
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    reference = type(original).from_pretrained(file.parent).eval()
    tokens = np.random.default_rng(0).integers(3, 96, (1, 60))
    with torch.no_grad():
        given = torch.tensor(tokens)
        expected = reference(input_ids=given, decoder_input_ids=given).logits.numpy()
    model = load_pretrained(file.parent)
    assert relative_l2(model(tokens, tokens).logits, expected) <= 1e-5
    said = "the head differs from the embedding: loaded as untied"
    assert [said in message for message in caplog.messages] == [True] * (edit is with_own_head)
    save_pretrained(model, tmp_path / "out")
    assert stored(tmp_path / "out") == stored(file.parent)


def test_a_copy_other_than_the_head_that_differs_is_named(tmp_path):
    model = transformers.BartForConditionalGeneration(transformers.BartConfig(**BART))
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[f"model.{COPY}"] = tensors[f"model.{SHARED}"] + 1
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"{COPY} should be a copy of model\.{SHARED}"):
        load_pretrained(tmp_path)
