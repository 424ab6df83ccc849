"""Matrices of 8-bit floats: the bits of transformers' own dequantization."""

import pytest
import torch
from quantized_files import check, check_float32, decoded
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from jaxllm.interop import CheckpointError

SETTINGS = {"quant_method": "fp8", "weight_block_size": [4, 8]}
SCALE = "_scale_inv"


def floats(*shape: int) -> torch.Tensor:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 50
    weight.flatten()[:40] = 0
    weight.flatten()[-1] = 448.0  # the largest
    return weight.to(torch.float8_e4m3fn)


def scales(*shape: int) -> torch.Tensor:
    found = torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 1e-3
    if found.numel() > 2:
        found.view(-1)[:3] = torch.tensor([0.0, 1e30, 1e-38])
    return found


def reference(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return Fp8Dequantize(None)._dequantize_one(weight, scale, dtype)


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((12, 24), (3, 3)),
        ((2, 8, 16), (2, 2, 2)),  # experts
        ((12, 24), (12, 1)),  # a scale for each row
        ((12, 24), ()),  # one for all
        ((12, 24), (2, 4)),  # other blocks than the config says
    ],
)
def test_blocks_are_as_transformers_decodes_them(tmp_path, shape, grid):
    weight, scale = floats(*shape), scales(*grid)
    tensors = {"a.weight": weight, "a.weight_scale_inv": scale, "norm.weight": torch.rand(3)}
    found = decoded(tmp_path, tensors, SETTINGS)
    assert {*found} == {"a.weight", "norm.weight"}
    check(found["a.weight"], reference(weight, scale, torch.bfloat16))
    check_float32(found["a.weight"], reference(weight, scale, torch.float32))


@pytest.mark.parametrize("as_bytes", [True, False])
def test_scales_may_be_powers_of_two(tmp_path, as_bytes):
    weight, exponents = floats(8, 16), torch.tensor([[127, 0], [140, 90]], dtype=torch.uint8)
    scale = exponents if as_bytes else exponents.view(torch.float8_e8m0fnu)
    found = decoded(tmp_path, {"w": weight, f"w{SCALE}": scale}, SETTINGS)
    check(found["w"], reference(weight, scale, torch.bfloat16))


def test_the_last_blocks_may_have_fewer_rows_and_columns(tmp_path):
    weight, scale = floats(10, 20), scales(3, 3)
    whole = scale.repeat_interleave(4, 0)[:10].repeat_interleave(8, 1)[:, :20]
    found = decoded(tmp_path, {"w": weight, f"w{SCALE}": scale}, SETTINGS)
    check(found["w"], (weight.float() * whole).to(torch.bfloat16))


def test_scales_of_inputs_are_left_out_and_fbgemm_has_another_suffix(tmp_path):
    weight, scale = floats(4, 8), scales(4, 1)
    tensors = {"w": weight, "w_scale": scale, "x.input_scale_ub": torch.rand(1)}
    found = decoded(tmp_path, tensors, {"quant_method": "fbgemm_fp8"})
    assert [*found] == ["w"]
    check(found["w"], (weight.float() * scale).to(torch.bfloat16))


def test_all_that_does_not_fit_is_named(tmp_path):
    tensors = {
        "alone": floats(8, 16),
        "cut": floats(8, 16),
        f"cut{SCALE}": scales(1, 3),
        "vector": floats(8),
        f"vector{SCALE}": scales(8),
    }
    with pytest.raises(CheckpointError) as caught:
        decoded(tmp_path, tensors, SETTINGS)
    alone, cut, vector = sorted(caught.value.problems)
    assert alone == "alone is float8_e4m3fn, but alone_scale_inv is missing"
    assert cut == (
        "cut_scale_inv has shape [1, 3], which is no grid of the blocks of cut, of shape [8, 16]"
    )
    assert "vector_scale_inv has shape [8]" in vector


@pytest.mark.parametrize("size", ["128", [0, 8], [4], 128])
def test_blocks_without_a_size_are_refused(tmp_path, size):
    tensors = {"w": floats(8, 16), f"w{SCALE}": scales(2, 2)}
    with pytest.raises(CheckpointError, match=r"weight_block_size=.* is no pair of sizes"):
        decoded(tmp_path, tensors, {**SETTINGS, "weight_block_size": size})


def test_scales_of_what_is_not_decoded_are_left_to_whoever_reads_the_tensors(tmp_path):
    tensors = {"w": torch.ones(4, 8, dtype=torch.int8), f"w{SCALE}": scales(1, 1)}
    assert {*decoded(tmp_path, tensors, SETTINGS)} == {*tensors}
