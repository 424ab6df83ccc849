"""Headers of GGUF files: read as `gguf` reads them, and refused where they are damaged."""

import struct

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

from jaxllm.interop import CheckpointError
from jaxllm.interop.formats.gguf.header import read_header

WEIGHTS = np.arange(64, dtype=np.float32).reshape(2, 32)
FIELDS = {"uint8": 7, "int8": -7, "uint16": 700, "int16": -700, "uint32": 70_000}
FIELDS |= {"int32": -70_000, "uint64": 2**40, "int64": -(2**40), "float32": 0.5, "float64": 0.1}
FIELDS |= {"bool": True, "string": "ä text"}


@pytest.fixture
def file(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    for kind, value in FIELDS.items():
        getattr(writer, f"add_{kind}")(f"of.{kind}", value)
    writer.add_array("of.numbers", [1, 2, 3])
    writer.add_array("of.texts", ["a", "", "ß"])
    writer.add_tensor("a.weight", WEIGHTS)
    writer.add_tensor(
        "b.weight",
        gguf.quantize(WEIGHTS, gguf.GGMLQuantizationType.Q8_0),
        raw_dtype=gguf.GGMLQuantizationType.Q8_0,
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "model.gguf"


def test_fields_and_tensors_are_those_that_gguf_reads(file):
    header, reader = read_header(file), gguf.GGUFReader(file)
    for kind, value in FIELDS.items():
        assert header.fields[f"of.{kind}"] == value
        assert reader.fields[f"of.{kind}"].contents() == value
    assert header.fields["of.numbers"].tolist() == [1, 2, 3]
    assert header.fields["of.texts"] == ["a", "", "ß"]
    for ours, theirs in zip(header.tensors, reader.tensors, strict=True):
        assert ours.name == theirs.name
        assert ours.kind == theirs.tensor_type
        assert ours.shape == tuple(theirs.shape[::-1])
        assert ours.offset == theirs.data_offset


def test_every_truncated_header_is_refused_as_cut_short(file):
    whole = file.read_bytes()
    end = read_header(file).tensors[0].offset
    for size in range(4, end - 32, 7):
        file.write_bytes(whole[:size])
        with pytest.raises(
            CheckpointError, match=r"model.gguf: (cut short|[\d,]+ elements do not)"
        ):
            read_header(file)


def header_of(*parts: bytes, tensors: int = 0, fields: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + b"".join(parts)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGML" + bytes(100), "begins with b'GGML'"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648 is not one of"),
        (header_of(tensors=2**60), r"1,152,921,504,606,846,976 elements do not fit into 24 bytes"),
        (header_of(fields=2**60), "elements do not fit"),
        (header_of(struct.pack("<Q", 2**62), bytes(99), fields=1), "elements do not fit"),
        (
            header_of(text("a"), struct.pack("<I", 99), bytes(9), fields=1),
            "has the unknown type 99",
        ),
        (
            header_of(text("a"), struct.pack("<IIQ", 9, 4, 2**61), bytes(99), fields=1),
            "elements do not fit",
        ),
        (
            header_of(text("a"), struct.pack("<IIQ", 9, 9, 1), bytes(99), fields=1),
            "arrays of type 9 are not supported",
        ),
        (
            header_of(*(text("a"), struct.pack("<IB", 0, 1)) * 2, bytes(9), fields=2),
            "field 'a' occurs twice",
        ),
        (
            header_of(text("a"), struct.pack("<I", 9), bytes(99), tensors=1),
            "has 9 dimensions, at most 4",
        ),
        (
            header_of(text("a"), struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0), tensors=1),
            "larger than any array",
        ),
        (
            header_of(text("general.alignment"), struct.pack("<IB", 0, 0), bytes(9), fields=1),
            "alignment=0 is not a number of bytes",
        ),
    ],
)
def test_damaged_headers_are_refused(tmp_path, content, message):
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_header(file)


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 983000\n")
    with pytest.raises(CheckpointError, match="a Git LFS pointer to 983 kB"):
        read_header(file)
