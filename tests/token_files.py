"""Files of tokens as others write them."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def write_nanogpt(file: Path, tokens: Sequence[int]) -> Path:
    """As nanoGPT's prepare.py does."""
    np.array(tokens, np.uint16).tofile(file)
    return file


def write_llm_c(file: Path, tokens: Sequence[int]) -> Path:
    """As write_datafile in llm.c's data_common.py does."""
    header = np.zeros(256, np.int32)
    header[:3] = 20240520, 1, len(tokens)
    with file.open("wb") as stream:
        stream.write(header.tobytes())
        stream.write(np.array(tokens, np.uint16).tobytes())
    return file


def write_megatron(file: Path, documents: Sequence[Sequence[Sequence[int]]]) -> Path:
    """As IndexedDatasetBuilder of Megatron-LM does: documents of sequences of int32 tokens."""
    sequences = [sequence for document in documents for sequence in document]
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    with file.open("wb") as stream:
        for sequence in sequences:
            stream.write(np.array(sequence, np.int32).tobytes(order="C"))
    pointers = 4 * (np.cumsum(lengths, dtype=np.int64) - lengths)
    firsts = np.cumsum([0, *(len(document) for document in documents)], dtype=np.int64)
    with file.with_suffix(".idx").open("wb") as stream:
        stream.write(b"MMIDIDX\x00\x00")
        stream.write(struct.pack("<Q", 1))
        stream.write(struct.pack("<B", 4))
        stream.write(struct.pack("<Q", len(lengths)))
        stream.write(struct.pack("<Q", len(firsts)))
        stream.write(lengths.tobytes(order="C"))
        stream.write(pointers.tobytes(order="C"))
        stream.write(firsts.tobytes(order="C"))
    return file
