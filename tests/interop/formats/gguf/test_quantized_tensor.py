"""Tensors of GGUF files: any box of any type of blocks is what `gguf` decodes."""

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

from dataclasses import replace

from gguf_files import DECODED_ONLY, KINDS, blocks_of
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.interop import CheckpointError
from jaxllm.interop.formats.gguf.header import Header, TensorInfo, read_header
from jaxllm.interop.formats.gguf.quantized_tensor import list_tensors
from jaxllm.interop.rules.boxes import slices

SHAPE = (12, 512)  # of 6 heads of two rows, or of one head
WEIGHTS = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
KNOWN = (KINDS.F32, KINDS.F16, KINDS.BF16, KINDS.Q8_0, KINDS.Q4_0, KINDS.Q4_1, KINDS.Q5_0)
KNOWN += (KINDS.Q5_1, *DECODED_ONLY)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for kind in KNOWN:
        writer.add_tensor(kind.name, blocks_of(WEIGHTS, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def tensors(file):
    return list_tensors(file, read_header(file))


def expected_of(kind):
    data = blocks_of(WEIGHTS, kind)
    return gguf.dequantize(data, kind).reshape(SHAPE)


def same(ours, theirs) -> bool:
    return ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("kind", KNOWN, ids=lambda kind: kind.name)
def test_every_type_is_decoded_bit_for_bit(tensors, kind):
    tensor = tensors[kind.name]
    assert same(tensor.read(), expected_of(kind))
    assert tensor.kind == kind
    assert tensor.nbytes == 4 * 12 * 512


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_box_is_that_of_the_whole(tensors, data):
    name = data.draw(st.sampled_from(["Q4_1", "Q6_K", "F16"]))
    tensor, whole = tensors[name], expected_of(KINDS[name])
    change = data.draw(st.sampled_from(["none", "heads", "rows", "transposed", "shifted"]))
    if change == "heads":
        tensor = replace(tensor, head_dim=4)
        whole = whole.reshape(3, 2, 2, 512).swapaxes(1, 2).reshape(SHAPE)
    if change == "rows":
        tensor, whole = tensor.rows("part", 3, 7).rows("part", 2, 4), whole[5:9]
    if change == "transposed":
        tensor, whole = tensor.transposed(), whole.T
    if change == "shifted":
        tensor, whole = replace(tensor, added=1.0), whole - 1
    box = [sorted(data.draw(st.tuples(*[st.integers(0, size)] * 2))) for size in whole.shape]
    assert same(tensor.read(box), np.ascontiguousarray(whole[slices(box)]))


def test_a_part_of_three_dimensions_is_a_matrix(tensors):
    cube = replace(tensors["Q8_0"], shape=(3, 4, 512))
    whole = expected_of(KINDS.Q8_0).reshape(3, 4, 512)
    part = cube.part("expert 2", 2)
    assert part.shape == (4, 512)
    assert same(part.read(), whole[2])


def test_a_cut_file_is_refused_with_both_sizes(file, tmp_path):
    cut = tmp_path / "model.gguf"
    cut.write_bytes(file.read_bytes()[:30_000])
    whole = file.stat().st_size / 1000
    with pytest.raises(CheckpointError, match=f"cut short: 30 of {whole:,.0f} kB are there"):
        list_tensors(cut, read_header(cut))


def test_types_and_shapes_that_no_blocks_have_are_refused_together(file):
    wrong = (TensorInfo("a", 999, (32,), 0), TensorInfo("b", KINDS.Q4_0, (33,), 0))
    with pytest.raises(CheckpointError) as raised:
        list_tensors(file, Header({}, wrong))
    assert "tensor 'a' has type 999" in str(raised.value)
    assert "tensor 'b' has rows of 33 elements, not a multiple of its blocks' 32" in str(
        raised.value
    )


def test_types_that_the_package_cannot_decode_are_refused_before_a_tensor_is_read(file):
    wrong = (TensorInfo("a", KINDS.Q8_K, (256,), 0), TensorInfo("b", KINDS.I8, (4,), 0))
    with pytest.raises(CheckpointError) as raised:
        list_tensors(file, Header({}, wrong))
    assert list(raised.value.problems) == [
        f"tensor {name!r} has type {kind}, which the package gguf does not decode: download the "
        "model in another quantization"
        for name, kind in (("a", "Q8_K"), ("b", "I8"))
    ]


def test_a_file_that_shrinks_while_it_is_read_is_an_error(file, tmp_path):
    copy = tmp_path / "model.gguf"
    copy.write_bytes(file.read_bytes())
    tensor = list_tensors(copy, read_header(copy))["Q6_K"]
    copy.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"the file ends [0-9]+ bytes early"):
        tensor.read()
