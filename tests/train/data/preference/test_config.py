"""Preference data of a run: rows of two sequences, the split, and rows that cannot be used."""

import json

import numpy as np
import pytest
from kinds import WAVES
from tiny import random_model

from jaxllm.errors import UserError
from jaxllm.models import build_abstract
from jaxllm.tokenization import ByteTokenizer
from jaxllm.train.data import find_data_class
from jaxllm.train.data.preference.config import PreferencesConfig

RECORDS = [
    {"prompt": f"{n % 20}? ", "chosen": f"yes {n}", "rejected": "no" * (1 + n % 3)}
    for n in range(60)
]


def write(folder, records=RECORDS) -> str:
    (folder / "p.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    return str(folder / "p.jsonl")


def test_rows_hold_both_sequences_and_their_targets(tmp_path):
    config = PreferencesConfig(preferences=(write(tmp_path),), held_out=0)
    rows = config.load(random_model(vocab_size=256), 16).train
    assert len(rows) == 60
    batch = rows.take(np.array([7, 59]))
    decode = ByteTokenizer().decode
    for row, number in enumerate((7, 59)):
        record = RECORDS[number]
        for side, name in enumerate(("chosen", "rejected")):
            tokens, targets = batch["tokens"][row, side], batch["targets"][row, side]
            assert decode(tokens[1:][targets]) == f"{record[name]}\0"
            length = int(batch["segment_ids"][row, side].sum())
            assert decode(tokens[:length]) == f"{record['prompt']}{record[name]}\0"
            assert not tokens[length:].any()
    assert rows.num_tokens == sum(
        2 * len(r["prompt"]) + len(r["chosen"]) + len(r["rejected"]) + 2 for r in RECORDS
    )


def test_equal_prompts_are_held_out_together(tmp_path):
    config = PreferencesConfig(preferences=(write(tmp_path),), held_out=0.3)
    examples = config.load(random_model(vocab_size=256), 16)
    train, held_out = (
        {
            ByteTokenizer().decode(rows.tokens[first : first + prompt])
            for first, prompt in zip(rows._first[:, 0], rows.prompts, strict=True)
        }
        for rows in examples[:2]
    )
    assert train
    assert held_out
    assert not train & held_out
    assert len(examples.train) + len(examples.held_out) == 60
    again = config.load(random_model(vocab_size=256), 16)
    assert again.fingerprint == examples.fingerprint


def test_rows_that_do_not_fit_are_named_or_counted(tmp_path, caplog):
    long = {"prompt": "a", "chosen": "b" * 20, "rejected": "c"}
    file = write(tmp_path, [RECORDS[0], long, *RECORDS[1:], {"chosen": "x"}])
    model = random_model(vocab_size=256)
    with pytest.raises(UserError, match=r"p\.jsonl, line 62: no preference: 'rejected' missing"):
        PreferencesConfig(preferences=(file,)).load(model, 16)
    config = PreferencesConfig(preferences=(file,), bad_rows="skip", held_out=0)
    rows = config.load(model, 16).train
    assert len(rows) == 60
    assert "skipped 2 of 62 rows" in caplog.text
    write(tmp_path, [RECORDS[0], long])
    with pytest.raises(UserError, match=r"p\.jsonl, line 2: a sequence of 22 tokens"):
        PreferencesConfig(preferences=(file,)).load(model, 16)


def test_what_preferences_need_is_said(tmp_path):
    file = write(tmp_path)
    with pytest.raises(UserError, match=r"preferences train a Decoder, but .* is SequenceModel"):
        PreferencesConfig(preferences=(file,)).load(build_abstract(WAVES), 16)
    with pytest.raises(UserError, match="nowhere"):
        PreferencesConfig(preferences=(file,), template="nowhere").load(
            random_model(vocab_size=256), 16
        )
    assert find_data_class({"preferences": []}) is PreferencesConfig
