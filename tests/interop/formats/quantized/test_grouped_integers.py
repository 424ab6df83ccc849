"""GPTQ's and AWQ's layers: their formula, on integers packed by a loop."""

import pytest
import torch
from quantized_files import check, decoded

from jaxllm.interop import CheckpointError

INPUTS, OUTPUTS, SIZE = 64, 32, 16
AWQ_PLACES = [0, 2, 4, 6, 1, 3, 5, 7]  # the output whose integer is at each place of a word


def integers(bits: int, *shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(0, 2**bits, shape, generator=generator)
    found[0], found[-1] = 0, 2**bits - 1
    return found


def packed(values: torch.Tensor, bits: int, axis: int) -> torch.Tensor:
    """Packs integers along an axis without gaps, bit by bit."""
    lines = values.movedim(axis, -1)
    words = torch.zeros(*lines.shape[:-1], -(-lines.shape[-1] * bits // 32), dtype=torch.int64)
    for at in range(lines.shape[-1]):
        for bit in range(bits):
            place = at * bits + bit
            words[..., place // 32] |= ((lines[..., at] >> bit) & 1) << (place % 32)
    return (words - ((words >> 31) << 32)).to(torch.int32).movedim(-1, axis)


def scales(dtype: torch.dtype = torch.float16) -> torch.Tensor:
    found = torch.rand(INPUTS // SIZE, OUTPUTS, generator=torch.Generator().manual_seed(2)) * 0.1
    found[0, 0], found[1, 1] = 0.0, 6e4
    return found.to(dtype)


def expected_of(
    values: torch.Tensor, zeros: torch.Tensor, scale: torch.Tensor, groups: torch.Tensor
) -> torch.Tensor:
    return (scale[groups] * (values - zeros[groups]).to(scale.dtype)).T


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("order", ["in order", "by activations", "no index", "version 2"])
def test_gptq_is_its_formula(tmp_path, bits, order):
    values, zeros = integers(bits, INPUTS, OUTPUTS), integers(bits, INPUTS // SIZE, OUTPUTS, seed=1)
    groups = torch.arange(INPUTS) // SIZE
    if order == "by activations":
        groups = groups[torch.randperm(INPUTS, generator=torch.Generator().manual_seed(3))]
    tensors = {
        "m.up.qweight": packed(values, bits, 0),
        "m.up.qzeros": packed(zeros, bits, 1),
        "m.up.scales": scales(),
        "m.up.g_idx": groups.to(torch.int32),
        "m.up.bias": torch.rand(OUTPUTS),
    }
    if order == "no index":
        del tensors["m.up.g_idx"]
    settings = {"quant_method": "gptq", "bits": bits, "group_size": SIZE}
    if order == "version 2":
        settings["checkpoint_format"] = "gptq_v2"
    found = decoded(tmp_path, tensors, settings, "float16")
    assert {*found} == {"m.up.weight", "m.up.bias"}
    offset = 0 if order == "version 2" else 1
    check(found["m.up.weight"], expected_of(values, zeros + offset, scales(), groups))


def test_awq_is_its_formula(tmp_path):
    values, zeros = integers(4, INPUTS, OUTPUTS), integers(4, INPUTS // SIZE, OUTPUTS, seed=1)

    def interleaved(matrix: torch.Tensor) -> torch.Tensor:
        return packed(matrix.reshape(len(matrix), -1, 8)[..., AWQ_PLACES].flatten(1), 4, 1)

    tensors = {
        "up.qweight": interleaved(values),
        "up.qzeros": interleaved(zeros),
        "up.scales": scales(),
    }
    settings = {"quant_method": "awq", "bits": 4, "group_size": SIZE, "version": "gemm"}
    found = decoded(tmp_path, tensors, settings, "float16")
    groups = torch.arange(INPUTS) // SIZE
    check(found["up.weight"], expected_of(values, zeros, scales(), groups))


def test_all_that_does_not_fit_is_named(tmp_path):
    whole = {
        "qweight": packed(integers(4, INPUTS, OUTPUTS), 4, 0),
        "qzeros": packed(integers(4, INPUTS // SIZE, OUTPUTS), 4, 1),
        "scales": scales(),
    }
    tensors = {f"{layer}.{name}": each for layer in "abc" for name, each in whole.items()}
    del tensors["a.qzeros"]
    tensors["b.scales"] = scales()[:3]
    tensors["c.qzeros"] = whole["qzeros"][:, :3]
    tensors |= {f"d.{name}": each for name, each in whole.items()}
    tensors["d.qweight"] = whole["qweight"].to(torch.int16)
    with pytest.raises(CheckpointError) as caught:
        decoded(tmp_path, tensors, {"quant_method": "gptq", "bits": 4, "group_size": SIZE})
    assert sorted(caught.value.problems) == [
        "a.qweight has no a.qzeros",
        "b.scales has 3 groups, which do not fit b.weight",
        "c.qzeros has shape [4, 3], expected [4, 4]",
        "d.qweight is int16, expected int32 or uint32",
    ]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"quant_method": "gptq", "bits": 5}, "bits=5 is not one of 2, 3, 4, 8"),
        (
            {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"},
            "checkpoint_format='marlin'",
        ),
        ({"quant_method": "gptq", "bits": 4, "is_marlin_format": True}, "is_marlin_format=True"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "version='gemv' is not supported"),
    ],
)
def test_other_settings_are_refused(tmp_path, settings, problem):
    with pytest.raises(CheckpointError, match=problem):
        decoded(tmp_path, {"a": torch.rand(2)}, settings)
