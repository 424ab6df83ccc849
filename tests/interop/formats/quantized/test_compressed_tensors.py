"""Matrices of compressed-tensors: the bits of its own `decompress`."""

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from quantized_files import check, decoded

from jaxllm.interop import CheckpointError

SHAPE = (12, 40)


def weights() -> torch.Tensor:
    found = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    found[0] = 0
    found[1, 0] = 50.0
    return found.bfloat16()


def compressed(
    form: str, grid: tuple[int, ...], **args: object
) -> tuple[dict[str, torch.Tensor], torch.Tensor, dict]:
    """Returns a compressed matrix, what its library decompresses it to, and the settings."""
    given = QuantizationArgs(**args)
    scheme = QuantizationScheme(targets=["Linear"], weights=given)
    generator = torch.Generator().manual_seed(1)
    state = {"weight": weights(), "weight_scale": torch.rand(grid, generator=generator).bfloat16()}
    if not given.symmetric:
        state["weight_zero_point"] = torch.randint(-3, 4, grid, generator=generator).to(torch.int8)
    compressor = BaseCompressor.get_value_from_registry(form)
    small = compressor.compress(state, scheme)
    whole = compressor.decompress(small, scheme)["weight"]
    settings = {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": given.model_dump()}},
    }
    return small, whole, settings


PACKED = "pack-quantized"


@pytest.mark.parametrize(
    ("form", "grid", "args"),
    [
        (PACKED, (12, 5), {"num_bits": 4, "strategy": "group", "group_size": 8}),
        (PACKED, (12, 1), {"num_bits": 3, "strategy": "channel"}),
        (
            PACKED,
            (12, 5),
            {"num_bits": 4, "strategy": "group", "group_size": 8, "symmetric": False},
        ),
        (PACKED, (12, 1), {"num_bits": 8, "strategy": "channel", "symmetric": False}),
        ("int-quantized", (12, 1), {"num_bits": 8, "strategy": "channel"}),
        ("int-quantized", (1,), {"num_bits": 8, "strategy": "tensor", "symmetric": False}),
        ("float-quantized", (12, 1), {"num_bits": 8, "type": "float", "strategy": "channel"}),
        ("float-quantized", (1,), {"num_bits": 8, "type": "float", "strategy": "tensor"}),
        (
            "float-quantized",
            (3, 5),
            {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [4, 8]},
        ),
    ],
)
def test_matrices_are_as_their_library_decompresses_them(tmp_path, form, grid, args):
    small, whole, settings = compressed(form, grid, **args)
    tensors = {f"up.{name}": x for name, x in small.items()}
    tensors |= {"up.bias": torch.rand(3), "up.input_scale": torch.rand(1), "norm.weight": weights()}
    found = decoded(tmp_path, tensors, settings)
    assert {*found} == {"up.weight", "up.bias", "norm.weight"}
    assert found["norm.weight"].dtype.name == "bfloat16"
    check(found["up.weight"], whole)


def test_columns_may_be_in_other_groups(tmp_path):
    args = {"num_bits": 4, "strategy": "group", "group_size": 8}
    small, _, settings = compressed(PACKED, (12, 5), **args)
    plain = decoded(tmp_path, {f"up.{n}": x for n, x in small.items()}, settings)["up.weight"]
    numbers = torch.from_numpy(plain.read().astype("float32"))
    scale = small["weight_scale"].float()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2)) // 8
    integers = numbers / scale.repeat_interleave(8, 1)
    small["weight_g_idx"] = order.to(torch.int32)
    found = decoded(tmp_path, {f"up.{n}": x for n, x in small.items()}, settings)
    check(found["up.weight"], (integers.round() * scale[:, order]).bfloat16())


def test_all_that_does_not_fit_is_named(tmp_path):
    args = {"num_bits": 4, "strategy": "group", "group_size": 8}
    small, _, settings = compressed(PACKED, (12, 5), **args)
    tensors = {f"{layer}.{name}": x.clone() for layer in "abc" for name, x in small.items()}
    tensors["a.weight_scale"] = small["weight_scale"][:, :3]
    del tensors["b.weight_shape"]
    tensors["c.weight_packed"] = small["weight_packed"][:, :4]
    with pytest.raises(CheckpointError) as caught:
        decoded(tmp_path, tensors, settings)
    assert sorted(caught.value.problems) == [
        "a.weight_scale has shape [12, 3], which does not fit a.weight, [12, 40]",
        "b.weight_scale belongs to b.weight_shape, which is missing",
        "c.weight_packed of shape [12, 4] does not hold the numbers of shape [12, 40] in any "
        "number of bits that quantization_config names",
    ]


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"format": "marlin-24"}, "format='marlin-24' is not supported"),
        ({"transform_config": {"a": 1}}, "transform_config is not supported"),
        ({"sparsity_config": {"format": "sparse-bitmask"}}, "sparsity_config is not supported"),
    ],
)
def test_other_settings_are_refused(tmp_path, changed, problem):
    settings = {"quant_method": "compressed-tensors", "format": "dense", **changed}
    with pytest.raises(CheckpointError, match=problem):
        decoded(tmp_path, {"a": torch.rand(2)}, settings)


def test_numbers_that_need_no_scale_and_places_beyond_the_scales_are_refused(tmp_path):
    args = {"num_bits": 4, "strategy": "group", "group_size": 8}
    small, _, settings = compressed(PACKED, (12, 5), **args)
    tensors = {f"a.{name}": x for name, x in small.items()}
    tensors["a.weight_g_idx"] = torch.full((40,), 5, dtype=torch.int32)
    tensors |= {"b.weight": weights(), "b.weight_scale": torch.rand(12, 1)}
    tensors |= {"c.weight": torch.ones(4, dtype=torch.int8), "c.weight_scale": torch.rand(4)}
    with pytest.raises(CheckpointError) as caught:
        decoded(tmp_path, tensors, settings)
    beyond, plain, vector = sorted(caught.value.problems)
    assert beyond == "a.weight_scale has shape [12, 5], which does not fit a.weight, [12, 40]"
    assert plain.startswith("b.weight is bfloat16, expected int8 or ")
    assert vector == "c.weight_scale has shape [4], which does not fit c.weight, [4]"


def test_a_config_that_says_that_nothing_is_sparse_is_read(tmp_path):
    small, whole, settings = compressed("int-quantized", (12, 1), num_bits=8, strategy="channel")
    settings["sparsity_config"] = {"format": "dense", "sparsity_structure": "unstructured"}
    check(decoded(tmp_path, small, settings)["weight"], whole)
