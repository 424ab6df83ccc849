"""Layers that bitsandbytes quantized: the bits of its own dequantization."""

import json

import pytest
import torch
from bitsandbytes import functional
from quantized_files import check, decoded

from jaxllm.interop import CheckpointError

SETTINGS = {"quant_method": "bitsandbytes"}


def weights(*shape: int) -> torch.Tensor:
    found = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found[0] = 0
    found[1, 0] = 1e4
    return found


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("is_nested", [False, True])
# Rows that are no whole number of blocks, of an even length, are decoded by the next test: the
# library's kernel for CPUs decodes them as if each row began a block (0.50.2).
@pytest.mark.parametrize("shape", [(64, 128), (33, 31)])
def test_codes_are_decoded_bit_for_bit(tmp_path, kind, is_nested, shape):
    packed, state = functional.quantize_4bit(
        weights(*shape).bfloat16(), blocksize=64, compress_statistics=is_nested, quant_type=kind
    )
    tensors = {"up.weight": packed, "up.bias": torch.rand(3)}
    tensors |= {f"up.weight.{name}": x for name, x in state.as_dict(packed=True).items()}
    found = decoded(tmp_path, tensors, SETTINGS)
    assert {*found} == {"up.weight", "up.bias"}
    check(found["up.weight"], functional.dequantize_4bit(packed, state))


def test_a_block_may_reach_into_the_next_row(tmp_path):
    packed, state = functional.quantize_4bit(weights(8, 96), blocksize=64, quant_type="nf4")
    tensors = {f"weight.{name}": x for name, x in state.as_dict(packed=True).items()}
    found = decoded(tmp_path, {**tensors, "weight": packed}, SETTINGS, "float32")
    codes = torch.stack([packed >> 4, packed & 15], -1).reshape(-1, 64).long()
    check(found["weight"], (state.code[codes] * state.absmax[:, None]).reshape(8, 96))


def test_rows_of_integers_are_decoded_bit_for_bit(tmp_path):
    integers, maxima, _ = functional.int8_vectorwise_quant(weights(16, 24).half())
    tensors = {
        "up.weight": integers,
        "up.SCB": maxima,
        "up.weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    found = decoded(tmp_path, tensors, SETTINGS, "float16")
    assert {*found} == {"up.weight"}
    check(found["up.weight"], functional.int8_vectorwise_dequant(integers, maxima).half())


def test_all_that_does_not_fit_is_named(tmp_path):
    packed, state = functional.quantize_4bit(weights(16, 24), blocksize=64, quant_type="nf4")
    whole = {f"weight.{name}": x for name, x in state.as_dict(packed=True).items()}
    whole["weight"] = packed
    tensors = {f"{layer}.{name}": x.clone() for layer in "abcd" for name, x in whole.items()}
    tensors["a.weight.absmax"] = whole["weight.absmax"][:-1]
    del tensors["b.weight.quant_map"]
    text = torch.frombuffer(bytearray(b"[1"), dtype=torch.uint8)
    tensors["c.weight.quant_state.bitsandbytes__nf4"] = text
    tensors["d.weight"] = packed[:-1]
    with pytest.raises(CheckpointError) as caught:
        decoded(tmp_path, tensors, SETTINGS)
    cut, absent, garbled, short = sorted(caught.value.problems)
    assert cut == "a.weight.absmax has shape [5], expected [6]"
    assert absent == "b.weight cannot be decoded: b.weight.quant_map is missing"
    assert garbled.startswith(
        "c.weight.quant_state.bitsandbytes__nf4 is no description of c.weight"
    )
    assert short == "d.weight has shape [191, 1], expected [192, 1]"


def test_sizes_that_are_no_sizes_are_named(tmp_path):
    packed, state = functional.quantize_4bit(weights(16, 24), blocksize=64, quant_type="nf4")
    tensors = {f"weight.{name}": x for name, x in state.as_dict(packed=True).items()}
    key = "weight.quant_state.bitsandbytes__nf4"
    given = json.loads(bytes(tensors[key].tolist()))
    for name, value in (("blocksize", 0), ("shape", [-1, 24]), ("shape", None)):
        text = bytearray(json.dumps({**given, name: value}).encode())
        changed = {**tensors, key: torch.frombuffer(text, dtype=torch.uint8), "weight": packed}
        with pytest.raises(CheckpointError, match="is no description of weight"):
            decoded(tmp_path, changed, SETTINGS)


def test_nested_statistics_that_do_not_fit_are_named(tmp_path):
    packed, state = functional.quantize_4bit(
        weights(64, 128), blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    tensors = {f"weight.{name}": x for name, x in state.as_dict(packed=True).items()}
    tensors |= {"weight": packed, "weight.absmax": tensors["weight.absmax"].float()}
    tensors["weight.nested_absmax"] = torch.rand(7)
    with pytest.raises(CheckpointError) as caught:
        decoded(tmp_path, tensors, SETTINGS)
    assert sorted(caught.value.problems) == [
        "weight.absmax is float32, expected uint8",
        "weight.nested_absmax has shape [7], expected [1]",
    ]
