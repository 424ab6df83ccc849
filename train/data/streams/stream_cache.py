"""Cache of a token stream on disk: read if it is what was written, as its digest tells."""

import logging
from pathlib import Path

import numpy as np

from jaxllm.train.data.batches import digest

from .stream_writer import part_of
from .windows import TokenStream

log = logging.getLogger("jaxllm")


def read_stream(file: Path) -> TokenStream | None:
    """Returns the stream in a file and those beside it, memory-mapped; None if there is none.

    A damaged one is none, which a line in the log says.
    """
    if not file.exists():
        return None
    try:
        lines = file.with_suffix(".digest").read_text().splitlines()
        expected = dict(line.split(" ", 1) for line in lines)
        arrays = {
            name: np.load(part_of(file, name), mmap_mode="r", allow_pickle=False)
            for name in expected
        }
        is_whole = {name: digest(array) for name, array in arrays.items()} == expected
        stream = TokenStream(arrays["tokens"], arrays["starts"], arrays.get("targets"))
    except (OSError, ValueError, EOFError, OverflowError, MemoryError, KeyError):
        is_whole = False
    if not is_whole:
        log.warning("%s  damaged, or without its digest: written anew", file)
        return None
    return stream
