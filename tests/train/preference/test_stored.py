"""The reference's log-likelihoods of all preferences, computed once and kept beside the run."""

import numpy as np
import pytest

from jaxllm.train import ConfigError
from jaxllm.train.data.batches import Batches, Examples
from jaxllm.train.data.preference.config import PreferenceRows
from jaxllm.train.data.preference.pair import EncodedPair
from jaxllm.train.preference.stored import FILE, compute, read, with_log_likelihoods, write


def rows(first: int, count: int) -> PreferenceRows:
    pairs = [EncodedPair([first + n, 1, 2], [first + n, 3], 1) for n in range(count)]
    return PreferenceRows(pairs, 4)


def batches() -> Batches:
    return Batches(Examples(rows(10, 7), rows(20, 2), {"seq_len": 4}), batch_size=3)


def score(batch) -> np.ndarray:
    """Stands for the reference: each sequence has a number of its own."""
    return (100.0 * batch["tokens"][:, :, 0] + batch["tokens"].sum(-1)).astype(np.float32)


def test_every_row_has_its_own_log_likelihoods(tmp_path):
    found = compute(batches(), score)
    assert [array.shape for array in found.values()] == [(7, 2), (2, 2)]
    write(tmp_path, found)
    joined = with_log_likelihoods(batches(), read(tmp_path, batches()))
    for step in range(4):
        batch = next(joined.train(step))
        np.testing.assert_array_equal(batch["reference"], score(batch))
        plain = next(batches().train(step))
        np.testing.assert_array_equal(batch["tokens"], plain["tokens"])
    for batch in joined.held_out(2):
        np.testing.assert_array_equal(batch["reference"], score(batch))
    assert joined.examples.train.num_tokens == batches().examples.train.num_tokens
    changed = {**found, "train": found["train"] + 1}
    other = with_log_likelihoods(batches(), changed)
    assert other.fingerprint() != joined.fingerprint()


def test_a_file_that_is_not_the_runs_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"reference\.npz: the reference's .* are gone"):
        read(tmp_path, batches())
    (tmp_path / FILE).write_bytes(b"PK not really")
    with pytest.raises(ConfigError, match="this is no file of log-likelihoods"):
        read(tmp_path, batches())
    write(tmp_path, {"train": np.zeros((3, 2), np.float32), "held_out": np.zeros((2, 2), "f4")})
    with pytest.raises(ConfigError, match=r"train has float32 \(3, 2\), expected .*\(7, 2\)"):
        read(tmp_path, batches())
