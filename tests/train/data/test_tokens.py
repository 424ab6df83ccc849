"""Token data: shards and files of others give the rows that their texts give."""

import json

import numpy as np
import pytest
from kinds import WAVES
from tiny import random_model
from token_files import write_nanogpt
from tokenizer_kinds import save_tokenizer

from jaxllm.cli import main
from jaxllm.errors import UserError
from jaxllm.models import build_abstract
from jaxllm.train.data.documents import DataConfig
from jaxllm.train.data.tokens import TokensConfig

TEXTS = [f"the cat and the hat {i} " * (1 + i % 9) for i in range(300)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    save_tokenizer("byte-level", tmp_path / "model")
    arguments = [str(tmp_path / "a.jsonl"), str(tmp_path / "out")]
    tokenizer = ["--tokenizer", str(tmp_path / "model")]
    assert main(["tokenize", *arguments, *tokenizer, "--held-out", "0.1"]) == 0
    return tmp_path


def rows_of(rows) -> list:
    batch = rows.take(np.arange(len(rows)))
    return [batch[name].tolist() for name in sorted(batch)]


def test_shards_give_the_rows_of_their_texts(folder, capsys):
    model = random_model(vocab_size=512)
    shared = {"tokenizer": str(folder / "model"), "packing": "best_fit"}
    text = DataConfig(text=(str(folder / "a.jsonl"),), held_out=0.1, **shared).load(model, 64)
    tokens = TokensConfig(tokens=(str(folder / "out"),), **shared).load(model, 64)
    copied = {"tokenizer": str(folder / "out" / "tokenizer"), "packing": "best_fit"}
    again = TokensConfig(tokens=(str(folder / "out"),), **copied).load(model, 64)
    for side in ("train", "held_out"):
        assert rows_of(getattr(text, side)) == rows_of(getattr(tokens, side))
        assert rows_of(getattr(again, side)) == rows_of(getattr(tokens, side))
    assert again.fingerprint == tokens.fingerprint


@pytest.mark.parametrize("packing", ["separate", "best_fit", "padded", "joined"])
def test_nothing_needs_to_be_held_out(packing, tmp_path):
    (tmp_path / "a.txt").write_text("text " * 30)
    arguments = [str(tmp_path / "a.txt"), str(tmp_path / "out"), "--tokenizer", "bytes"]
    assert main(["tokenize", *arguments]) == 0
    np.save(tmp_path / "b.npy", np.arange(100, dtype=np.uint8))
    for name in ("out", "b.npy"):
        config = TokensConfig(tokens=(str(tmp_path / name),), tokenizer="bytes", packing=packing)
        examples = config.load(random_model(vocab_size=256), 16)
        assert len(examples.train) > 5
        assert len(examples.held_out) == 0


def test_another_tokenizer_or_vocabulary_is_refused(folder):
    config = TokensConfig(tokens=(str(folder / "out"),))
    with pytest.raises(UserError, match=r"manifest\.json: the tokenizer of .* vocab_size is 96"):
        config.load(random_model(), 64)
    other = save_tokenizer("pieces", folder / "other")
    config = TokensConfig(tokens=(str(folder / "out"),), tokenizer=str(other))
    with pytest.raises(UserError, match=r"manifest\.json: the shards were made by another tok"):
        config.load(random_model(vocab_size=512), 64)
    with pytest.raises(UserError, match="tokens train a Decoder"):
        config.load(build_abstract(WAVES), 64)


def test_files_of_nanogpt_need_the_token_that_ends_documents(tmp_path):
    for name, seed in (("train.bin", 0), ("val.bin", 1)):
        write_nanogpt(tmp_path / name, np.random.default_rng(seed).integers(0, 50, 500).tolist())
    files = {
        "tokens": (str(tmp_path / "train.bin"),),
        "held_out_tokens": (str(tmp_path / "val.bin"),),
    }
    model = random_model(vocab_size=256)
    with pytest.raises(UserError, match=r"train\.bin: nothing says where documents begin; set"):
        TokensConfig(**files).load(model, 16)
    joined = TokensConfig(**files, packing="joined").load(model, 16)
    separate = TokensConfig(**files, tokenizer="bytes").load(model, 16)
    for side in ("train", "held_out"):
        one, other = (getattr(each, side) for each in (joined, separate))
        batches = [each.take(np.arange(len(each))) for each in (one, other)]
        np.testing.assert_array_equal(batches[0]["tokens"], batches[1]["tokens"])
        assert batches[1]["segment_ids"].max() > 1
    (tmp_path / "manifest.json").write_text("{}")
    several = TokensConfig(tokens=(str(tmp_path), str(tmp_path / "val.bin")))
    with pytest.raises(UserError, match=r"takes one folder of `jaxllm tokenize`, or token files"):
        several.load(model, 16)
