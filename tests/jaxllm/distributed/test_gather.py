"""Texts of all processes are gathered in their order, whatever their lengths."""

import numpy as np
import pytest

from jaxllm.distributed import gather
from jaxllm.distributed.gather import gather_texts


def test_one_process_has_its_own_text():
    assert gather_texts("näme") == ["näme"]


@pytest.mark.parametrize("others", [["", "a longer text ✓"], ["x", ""]])
def test_texts_of_other_lengths_are_gathered(monkeypatch, others):
    texts = ["näme", *others]
    sizes = [len(text.encode()) for text in texts]
    padded = [np.frombuffer(t.encode().ljust(max(sizes), b"\0"), np.uint8) for t in texts]

    def allgather(x: np.ndarray) -> np.ndarray:
        rows = np.array(sizes) if x.ndim == 0 else np.stack(padded)
        np.testing.assert_array_equal(rows[0], x)
        return rows

    monkeypatch.setattr(gather.jax, "process_count", lambda: len(texts))
    monkeypatch.setattr(gather.multihost_utils, "process_allgather", allgather)
    assert gather_texts(texts[0]) == texts
