"""Blocks of 4-bit floats: the bits of transformers' own dequantization."""

import pytest
import torch
from quantized_files import check, check_float32, decoded
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from jaxllm.interop import CheckpointError

SETTINGS = {"quant_method": "mxfp4"}
SHAPE = (3, 10, 2, 16)  # experts, outputs, blocks, bytes


def blocks(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    found = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    found[0, 0] = 0  # all zeros
    found[0, 1] = 0x88  # all minus zero
    return found


def scales(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    found = torch.randint(100, 150, shape, generator=generator, dtype=torch.uint8)
    found[-1, :4, 0] = torch.tensor([0, 1, 253, 254])  # the smallest and the largest
    return found


def test_blocks_are_as_transformers_decodes_them(tmp_path):
    packed, exponents = blocks(*SHAPE), scales(*SHAPE[:-1])
    names = "experts.up_blocks", "experts.up_scales"
    tensors = {names[0]: packed, names[1]: exponents, "experts.up_bias": torch.rand(3)}
    found = decoded(tmp_path, tensors, SETTINGS)
    assert {*found} == {"experts.up", "experts.up_bias"}
    assert found["experts.up"].shape == (3, 64, 10)
    check(found["experts.up"], convert_moe_packed_tensors(packed, exponents))
    wide = convert_moe_packed_tensors(packed, exponents, dtype=torch.float32)
    check_float32(found["experts.up"], wide)


def test_the_reserved_exponent_is_read_as_transformers_reads_it(tmp_path):
    exponents = scales(*SHAPE[:-1])
    exponents[0, 2, 1] = 255
    found = decoded(tmp_path, {"a_blocks": blocks(*SHAPE), "a_scales": exponents}, SETTINGS)
    expected = convert_moe_packed_tensors(blocks(*SHAPE), exponents)
    check(found["a"], expected)
    assert not expected[0, 32:, 2].isfinite().all()


def test_all_that_does_not_fit_is_named(tmp_path):
    tensors = {
        "a_blocks": blocks(*SHAPE),
        "b_blocks": blocks(*SHAPE),
        "b_scales": scales(3, 10, 1),
        "c_blocks": blocks(3, 10, 2, 8),
        "c_scales": scales(3, 10, 2),
        "d_blocks": blocks(*SHAPE).to(torch.int32),
        "d_scales": scales(3, 10, 2),
    }
    with pytest.raises(CheckpointError) as caught:
        decoded(tmp_path, tensors, SETTINGS)
    assert sorted(caught.value.problems) == [
        "a_blocks has no a_scales",
        "b_scales has shape [3, 10, 1], expected [3, 10, 2]",
        "c_blocks has shape [3, 10, 2, 8], expected [..., 16]",
        "d_blocks is int32, expected uint8",
    ]
