"""Summaries say what is in the rows: every token once, targets apart, padding left out."""

import json

import numpy as np
import pytest
from tiny import random_model

from jaxllm.tokenization import ByteTokenizer
from jaxllm.train.data.batches import Batches
from jaxllm.train.data.chat import ChatConfig
from jaxllm.train.data.documents import DataConfig
from jaxllm.train.data.inspection.summary import summarize
from jaxllm.train.data.mixture import MixtureConfig

T = 40


def batches_of(config) -> Batches:
    return Batches(config.load(random_model(vocab_size=256), T), batch_size=4)


@pytest.fixture
def talks(tmp_path):
    records = [{"prompt": f"{i}?", "completion": "!" * (1 + i % 9)} for i in range(60)]
    (tmp_path / "talks.jsonl").write_text("\n".join(map(json.dumps, records)))
    options = {"chat": (str(tmp_path / "talks.jsonl"),), "template": "plain", "held_out": 0.2}
    return ChatConfig(tokenizer="bytes", **options)


def test_rows_are_shown_as_documents_of_pieces(talks):
    batches = batches_of(talks)
    summary = summarize(batches, ByteTokenizer(), T, rows=5)
    batch = next(batches.train(0))
    assert len(summary.shown) == 5
    for number, row in enumerate(summary.shown[:4]):
        for document in row.documents:
            asked, answered = document
            assert (asked.is_target, answered.is_target) == (False, True)
            assert asked.text.endswith("?")
            assert set(answered.text) == {"!", "\0"}
        assert row.targets == batch["mask"][number].sum()
        assert row.tokens == sum(len(piece.text) for each in row.documents for piece in each)
        assert row.padding == (batch["segment_ids"][number] == 0).sum()
    later = summarize(batches, ByteTokenizer(), T, step=1, rows=1)
    assert later.shown[0].documents == summary.shown[4].documents


def test_figures_are_those_of_the_rows(talks):
    batches = batches_of(talks)
    rows = batches.examples.train
    batch = rows.take(np.arange(len(rows)))
    summary = summarize(batches, ByteTokenizer(), T)
    (source,) = summary.sources
    segments = batch["segment_ids"]
    assert (source.rows, source.tokens, source.share) == (len(rows), rows.num_tokens, 1)
    assert source.filled == pytest.approx((segments > 0).mean())
    assert source.learned == pytest.approx(batch["mask"].sum() / (segments > 0).sum())
    assert source.documents == pytest.approx(segments.max(1).mean())
    assert source.lengths["shortest"] <= source.lengths["median"] <= source.lengths["longest"]
    assert source.lengths["longest"] == max(np.bincount(row)[1:].max() for row in segments)
    assert summary.held_out_rows == len(batches.examples.held_out)


def test_joined_windows_and_mixtures(tmp_path, talks):
    (tmp_path / "a.txt").write_text("abcdefg" * 600)
    text = DataConfig(text=(str(tmp_path / "a.txt"),), packing="joined", held_out=0)
    (row, *_) = summarize(batches_of(text), ByteTokenizer(), T).shown
    ((piece, learned),) = row.documents
    assert (piece.is_target, len(piece.text), learned.is_target) == (False, 1, True)
    mixture = MixtureConfig(
        mixture={"text": text, "talks": ChatConfig(**{**vars(talks), "tokenizer": None})},
        weights={"text": 3, "talks": 1},
    )
    summary = summarize(batches_of(mixture), ByteTokenizer(), T, rows=8)
    assert [source.name for source in summary.sources] == ["text", "talks"]
    assert {row.source for row in summary.shown} == {"text", "talks"}
    shares = [source.share for source in summary.sources]
    assert shares == pytest.approx([0.75, 0.25], abs=0.03)
