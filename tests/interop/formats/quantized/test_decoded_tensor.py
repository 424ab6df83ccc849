"""Decoded tensors: pieces of any box, in another dtype, of a file that was cut."""

from pathlib import Path

import numpy as np

from jaxllm.interop.formats.quantized import decoded_tensor
from jaxllm.interop.formats.quantized.decoded_tensor import DecodedTensor, check_shapes, in_float32
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.boxes import slices

NUMBERS = np.random.default_rng(0).random((6, 10, 8)).astype(np.float32)


def tensor_of(dtype: str, seen: list) -> DecodedTensor:
    def decode(box):
        seen.append(box)
        return NUMBERS[slices(box)]

    strides = (80, 1, 10)  # columns lie one after the other
    about = "x", np.dtype(dtype), NUMBERS.shape, Path("file"), 0
    return DecodedTensor(*about, strides=strides, decode=decode, storage="small")


def test_a_box_is_decoded_in_small_pieces_in_the_order_of_the_file(monkeypatch):
    monkeypatch.setattr(decoded_tensor, "PIECE", 20)
    seen = []
    box = [(1, 5), (2, 9), (0, 8)]
    np.testing.assert_array_equal(tensor_of("float32", seen).read(box), NUMBERS[slices(box)])
    assert seen[0] == [(1, 2), (2, 9), (0, 2)]
    assert max(np.prod([high - low for low, high in piece]) for piece in seen) <= 20


def test_float32_is_rounded_to_nothing_else_before():
    narrow, plain = tensor_of("bfloat16", []), StoredTensor("y", np.dtype("int8"), (2,), Path(), 0)
    np.testing.assert_array_equal(narrow.read(), NUMBERS.astype("bfloat16"))
    wide = in_float32({"x": narrow, "y": plain})
    np.testing.assert_array_equal(wide["x"].read(), NUMBERS)
    assert wide["y"] is plain


def test_wrong_shapes_are_named():
    problems = []
    tensor = tensor_of("float32", [])
    assert check_shapes(problems, (tensor, (6, 10, 8)))
    assert not check_shapes(problems, (tensor, (6, 10)))
    assert problems == ["x has shape [6, 10, 8], expected [6, 10]"]
