"""Pairs of texts and arrays of vectors, as their users bring them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from kinds import CONFIGS, WAVES

from jaxllm.config import with_fields
from jaxllm.models import build_abstract
from jaxllm.train.data.batches import Batches
from jaxllm.train.data.held_out import held_out_of
from jaxllm.train.data.pairs import PairsConfig
from jaxllm.train.data.text import ByteTokenizer
from jaxllm.train.data.vectors import VectorsConfig

BYTES = dataclasses.replace(
    CONFIGS["encoder-decoder"],
    decoder=dataclasses.replace(CONFIGS["encoder-decoder"].decoder, vocab_size=256),
    source_vocab_size=None,
)
PAIRS = [(f"{n} + {n}", str(2 * n)) for n in range(60)] + [
    ("1 + 1", "two"),
    ("\N{SNOWMAN}", "snow"),
]


def write(folder: Path, pairs=PAIRS, names=("source", "target")) -> PairsConfig:
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(dict(zip(names, p, strict=True))) + "\n\n" for p in pairs))
    return PairsConfig(pairs=(str(file),), held_out=0.2)


def texts(batch) -> set[tuple[str, str]]:
    """Read back from the tokens."""
    found = set()
    for source, there, tokens, counts in zip(*(batch[k] for k in KEYS), strict=True):
        assert tokens[0] == 0
        assert source[there][-1] == 0 == tokens[1:][counts][-1]
        assert not source[~there].any()
        assert not tokens[1:][~counts].any()
        found.add(
            (
                ByteTokenizer().decode(source[there][:-1]),
                ByteTokenizer().decode(tokens[1:][counts][:-1]),
            )
        )
    return found


KEYS = ("source", "source_mask", "tokens", "mask")


def test_every_pair_is_there_once_and_no_source_on_both_sides(tmp_path):
    config = write(tmp_path)
    examples = config.load(build_abstract(BYTES), 8)
    parts = [examples.train, examples.held_out]
    train, held_out = (texts(part.take(np.arange(len(part)))) for part in parts)
    assert train | held_out == set(PAIRS)
    assert len(examples.train) + len(examples.held_out) == len(PAIRS)
    assert not {source for source, _ in train} & {source for source, _ in held_out}
    assert 3 < len(held_out) < 25
    batch = examples.train.take(np.arange(3))
    assert [batch[k].shape for k in KEYS] == [(3, 8), (3, 8), (3, 9), (3, 8)]


def test_a_target_starts_as_the_model_says(tmp_path):
    model = build_abstract(dataclasses.replace(BYTES, start_token=5))
    batch = write(tmp_path).load(model, 8).train.take(np.arange(4))
    assert (batch["tokens"][:, 0] == 5).all()


def test_other_keys_and_other_pairs_are_told_apart(tmp_path):
    model = build_abstract(BYTES)
    first = write(tmp_path).load(model, 8)
    config = write(tmp_path, names=("en", "de"))
    renamed = dataclasses.replace(config, source_key="en", target_key="de").load(model, 8)
    assert renamed.fingerprint == first.fingerprint
    assert json.loads(json.dumps(first.fingerprint)) == first.fingerprint
    other = write(tmp_path, [*PAIRS[:-1], ("\N{SNOWMAN}", "snot")]).load(model, 8)
    assert other.fingerprint != first.fingerprint


def test_pairs_that_will_not_do_are_named(tmp_path):
    config, model = write(tmp_path), build_abstract(BYTES)
    with pytest.raises(ValueError, match=r"do not fit in seq_len=6: the longest source has 8 t"):
        config.load(model, 6)
    with pytest.raises(ValueError, match=r"pairs\.jsonl, line 1: .* a text under 'english'"):
        dataclasses.replace(config, source_key="english").load(model, 8)
    with pytest.raises(ValueError, match="pairs train an EncoderDecoder, not the SequenceModel"):
        config.load(build_abstract(WAVES), 8)
    for small in ({"source_vocab_size": 99}, {"decoder": CONFIGS["encoder-decoder"].decoder}):
        with pytest.raises(ValueError, match=r"tokenizer has 256 tokens, .* is (99|20)"):
            config.load(build_abstract(dataclasses.replace(BYTES, **small)), 8)
    (tmp_path / "pairs.txt").write_text("a\tb")
    with pytest.raises(ValueError, match=r"pairs are read from \.jsonl files, not '\.txt'"):
        PairsConfig(pairs=(str(tmp_path / "*.txt"),)).load(model, 8)
    with pytest.raises(FileNotFoundError, match="matches no file"):
        PairsConfig(pairs=("nowhere.jsonl",)).load(model, 8)


@pytest.mark.parametrize(
    ("fraction", "least", "most"), [(0.0, 0, 0), (0.1, 60, 140), (0.9, 850, 950)]
)
def test_a_share_is_held_out_and_copies_stay_together(fraction, least, most):
    contents = [b"%d" % (i % 1000) for i in range(2000)]
    held = held_out_of(contents, fraction)
    assert held[:1000] == held[1000:]
    assert least <= sum(held[:1000]) <= most
    assert held_out_of(contents[::-1], fraction) == held[::-1]
    assert sum(held_out_of([b"a", b"b"], fraction)) == (fraction > 0)


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
def test_every_row_is_there_once(tmp_path, model, arrays):
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
    ("model", "arrays", "said"),
    [
        (WAVES, {"outputs": normal(5, 7, 2)}, "holds outputs; it needs inputs"),
        (
            WAVES,
            {"inputs": normal(5, 6, 2)},
            r"are \(5, 5, 2\) and \(5, 5, 2\); this model and seq",
        ),
        (WAVES, {"inputs": np.full((5, 7, 2), np.nan)}, "inputs is float64 .* not finite numbers"),
        (
            WAVES,
            {"inputs": normal(5, 6, 2), "targets": normal(4, 6, 2)},
            "different numbers of rows",
        ),
        (
            CONFIGS["pooled"],
            {"inputs": normal(5, 7, 3)},
            "not by pooled=True and attention.causal=False",
        ),
        (CONFIGS["sees images"], {"inputs": normal(5, 7, 3)}, "not the Decoder of this run"),
        (CONFIGS["pooled"], {"inputs": normal(5, 6, 3), "targets": normal(5, 6, 5)}, r"\(5, 5\)"),
    ],
)
def test_vectors_that_will_not_do_are_named(tmp_path, model, arrays, said):
    with pytest.raises(ValueError, match=said):
        save(tmp_path, **arrays).load(build_abstract(model), 6)


def test_a_decoder_that_sees_what_it_is_to_tell_is_refused(tmp_path):
    config = CONFIGS["vectors given vectors"]
    arrays = {"inputs": normal(9, 6, 3), "targets": normal(9, 6, 5)}
    for changes in ({"attention.causal": False}, {"input_dim": 4}):
        decoder = with_fields(config.decoder, changes)
        model = build_abstract(dataclasses.replace(config, decoder=decoder))
        with pytest.raises(
            ValueError, match=r"needs decoder\.attention\.causal, which is (True|False), and"
        ):
            save(tmp_path, **arrays).load(model, 6)


@pytest.mark.parametrize("content", [b"", b"not NumPy", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_npz_is_named(tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.npz is not an \.npz of arrays"):
        VectorsConfig(vectors=str(tmp_path / "bad.npz")).load(build_abstract(WAVES), 6)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"one\.npy is not an \.npz of arrays"):
        VectorsConfig(vectors=str(tmp_path / "one.npy")).load(build_abstract(WAVES), 6)
    np.savez(tmp_path / "code.npz", inputs=np.array([print], dtype=object))
    with pytest.raises(ValueError, match=r"code\.npz is not an \.npz of arrays"):
        VectorsConfig(vectors=str(tmp_path / "code.npz")).load(build_abstract(WAVES), 6)
