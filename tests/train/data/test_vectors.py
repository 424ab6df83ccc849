"""Vector data: rows of an .npz file, the held-out split and error messages."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from kinds import CONFIGS, WAVES

from jaxllm.config import with_fields
from jaxllm.models import build_abstract
from jaxllm.train.data.batches import Batches
from jaxllm.train.data.vectors import VectorsConfig


def save(folder: Path, **arrays: np.ndarray) -> VectorsConfig:
    np.savez(folder / "vectors.npz", **arrays)
    return VectorsConfig(vectors=str(folder / "vectors.npz"), held_out=0.2)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


def every(rows) -> dict[str, np.ndarray]:
    return rows.take(np.arange(len(rows)))


@pytest.mark.parametrize(
    ("model", "arrays"),
    [
        (CONFIGS["pooled"], {"inputs": normal(50, 6, 3), "targets": normal(50, 5)}),
        (CONFIGS["each vector"], {"inputs": normal(50, 6, 3), "targets": normal(50, 6, 5)}),
        (
            CONFIGS["vectors given vectors"],
            {"inputs": normal(50, 6, 3), "targets": normal(50, 6, 5)},
        ),
        (WAVES, {"inputs": normal(50, 7, 2)}),
    ],
    ids=["pooled", "each", "given", "next"],
)
def test_every_row_occurs_once(tmp_path, model, arrays):
    examples = save(tmp_path, **arrays).load(build_abstract(model), 6)
    train, held_out = every(examples.train), every(examples.held_out)
    inputs, targets = arrays["inputs"], arrays.get("targets")
    if targets is None:
        inputs, targets = inputs[:, :-1], inputs[:, 1:]
    for name, expected in (("inputs", inputs), ("targets", targets)):
        found = np.concatenate([train[name], held_out[name]])
        assert found.dtype == np.float32
        ours, theirs = (np.sort(x.reshape(50, -1), axis=0) for x in (found, expected))
        np.testing.assert_array_equal(ours, theirs.astype(np.float32))
    assert 2 < len(examples.held_out) < 20
    assert train["mask"].all()
    assert train["mask"].shape == train["targets"].shape[:-1]
    batches = Batches(examples, batch_size=4)
    assert sum(batch["mask"].sum() for batch in batches.held_out(99)) == held_out["mask"].sum()
    moved = dict(arrays, inputs=arrays["inputs"] + 1e-3)
    other = save(tmp_path, **moved).load(build_abstract(model), 6)
    assert other.fingerprint != examples.fingerprint


@pytest.mark.parametrize(
    ("model", "arrays", "message"),
    [
        (WAVES, {"outputs": normal(5, 7, 2)}, "holds the arrays outputs; it must have inputs"),
        (
            WAVES,
            {"inputs": normal(5, 6, 2)},
            r"the shapes \(5, 5, 2\) and \(5, 5, 2\); this model with seq",
        ),
        (WAVES, {"inputs": np.full((5, 7, 2), np.nan)}, "dtype float64 .* must hold finite numb"),
        (
            WAVES,
            {"inputs": normal(5, 6, 2), "targets": normal(4, 6, 2)},
            "different numbers of rows",
        ),
        (
            CONFIGS["pooled"],
            {"inputs": normal(5, 7, 3)},
            "pooled=True and attention.causal=False",
        ),
        (CONFIGS["sees images"], {"inputs": normal(5, 7, 3)}, "class of this run is Decoder"),
        (CONFIGS["pooled"], {"inputs": normal(5, 6, 3), "targets": normal(5, 6, 5)}, r"\(5, 5\)"),
    ],
)
def test_unsuitable_vectors_are_reported(tmp_path, model, arrays, message):
    with pytest.raises(ValueError, match=message):
        save(tmp_path, **arrays).load(build_abstract(model), 6)


def test_a_decoder_that_cannot_use_teacher_forcing_is_rejected(tmp_path):
    config = CONFIGS["vectors given vectors"]
    arrays = {"inputs": normal(9, 6, 3), "targets": normal(9, 6, 5)}
    for changes in ({"attention.causal": False}, {"input_dim": 4}):
        decoder = with_fields(config.decoder, changes)
        model = build_abstract(dataclasses.replace(config, decoder=decoder))
        with pytest.raises(
            ValueError, match=r"this model has causal=\w+, input_dim=\d and output_dim=5"
        ):
            save(tmp_path, **arrays).load(model, 6)


@pytest.mark.parametrize("content", [b"", b"not NumPy", b"PK\x03\x04 cut off"])
def test_files_that_are_not_npz_are_reported(tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.npz is not an \.npz file of numeric"):
        VectorsConfig(vectors=str(tmp_path / "bad.npz")).load(build_abstract(WAVES), 6)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"one\.npy is not an \.npz file of numeric"):
        VectorsConfig(vectors=str(tmp_path / "one.npy")).load(build_abstract(WAVES), 6)
    np.savez(tmp_path / "code.npz", inputs=np.array([print], dtype=object))
    with pytest.raises(ValueError, match=r"code\.npz is not an \.npz file of numeric"):
        VectorsConfig(vectors=str(tmp_path / "code.npz")).load(build_abstract(WAVES), 6)
