"""Text pairs: tokenized examples, the held-out split, fingerprints and error messages."""

import dataclasses
import json
from pathlib import Path

import chex
import numpy as np
import pytest
from kinds import CONFIGS, WAVES

from jaxllm.models import build_abstract
from jaxllm.tokenization import ByteTokenizer
from jaxllm.train.data.pairs import PairsConfig

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
    """Decodes a batch to (source, target) texts and checks start, end and padding."""
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


def test_every_pair_occurs_once_and_no_source_is_on_both_sides(tmp_path):
    config = write(tmp_path)
    examples = config.load(build_abstract(BYTES), 8)
    parts = [examples.train, examples.held_out]
    train, held_out = (texts(part.take(np.arange(len(part)))) for part in parts)
    assert train | held_out == set(PAIRS)
    assert len(examples.train) + len(examples.held_out) == len(PAIRS)
    assert not {source for source, _ in train} & {source for source, _ in held_out}
    assert 3 < len(held_out) < 25
    batch = examples.train.take(np.arange(3))
    chex.assert_shape([batch[k] for k in KEYS], [(3, 8), (3, 8), (3, 9), (3, 8)])


def test_a_target_starts_with_the_model_s_start_token(tmp_path):
    model = build_abstract(dataclasses.replace(BYTES, start_token=5))
    batch = write(tmp_path).load(model, 8).train.take(np.arange(4))
    assert (batch["tokens"][:, 0] == 5).all()


def test_the_fingerprint_depends_on_the_pairs_but_not_on_the_keys(tmp_path):
    model = build_abstract(BYTES)
    first = write(tmp_path).load(model, 8)
    config = write(tmp_path, names=("en", "de"))
    renamed = dataclasses.replace(config, source_key="en", target_key="de").load(model, 8)
    assert renamed.fingerprint == first.fingerprint
    assert json.loads(json.dumps(first.fingerprint)) == first.fingerprint
    other = write(tmp_path, [*PAIRS[:-1], ("\N{SNOWMAN}", "snot")]).load(model, 8)
    assert other.fingerprint != first.fingerprint


def test_unsuitable_pairs_are_reported(tmp_path):
    config, model = write(tmp_path), build_abstract(BYTES)
    with pytest.raises(
        ValueError, match=r"pairs\.jsonl, line 21: .* not fit in seq_len=6: .* source has 8 t"
    ):
        config.load(model, 6)
    skipping = dataclasses.replace(config, bad_rows="skip").load(model, 6)
    kept = len(skipping.train) + len(skipping.held_out)
    assert 0 < kept < len(PAIRS)
    whole = config.load(model, 8)
    lengths = [part.arrays["source_mask"].sum(1) for part in whole[:2]]
    assert kept == int((np.concatenate(lengths) <= 6).sum())
    with pytest.raises(ValueError, match=r"pairs\.jsonl, line 1: .* a text under 'english'"):
        dataclasses.replace(config, source_key="english").load(model, 8)
    with pytest.raises(ValueError, match=r"train an EncoderDecoder, but .* is SequenceModel"):
        config.load(build_abstract(WAVES), 8)
    for small in ({"source_vocab_size": 99}, {"decoder": CONFIGS["encoder-decoder"].decoder}):
        with pytest.raises(ValueError, match=r"tokenizer has 256 tokens; .* is (99|20)"):
            config.load(build_abstract(dataclasses.replace(BYTES, **small)), 8)
    (tmp_path / "pairs.txt").write_text("a\tb")
    with pytest.raises(ValueError, match=r"pairs\.txt: .* a text under 'target'"):
        PairsConfig(pairs=(str(tmp_path / "*.txt"),)).load(model, 8)
    with pytest.raises(FileNotFoundError, match=r"no file matches 'nowhere\.jsonl'"):
        PairsConfig(pairs=("nowhere.jsonl",)).load(model, 8)
