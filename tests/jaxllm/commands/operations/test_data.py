"""`jaxllm tokenize`: what it writes and says."""

import json

import numpy as np
import pytest
from tokenizer_kinds import save_tokenizer

from jaxllm.cli import main

TALK = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hat"}]}


def test_texts_become_shards_with_a_manifest_and_the_tokenizer(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"body": "the cat"}\n{\n{"body": "the hat"}\n')
    folder = save_tokenizer("byte-level, begins", tmp_path / "model")
    arguments = [str(tmp_path / "a.jsonl"), str(tmp_path / "out"), "--tokenizer", str(folder)]
    assert main(["tokenize", *arguments, "--text-key", "body"]) == 2
    assert "a.jsonl, line 2: " in capsys.readouterr().err
    assert main(["tokenize", *arguments, "--text-key", "body", "--bad-rows", "skip"]) == 2
    assert "begun with other bad_rows" in capsys.readouterr().err
    arguments[1] = str(tmp_path / "other")
    assert main(["tokenize", *arguments, "--text-key", "body", "--bad-rows", "skip"]) == 0
    out = capsys.readouterr().out
    assert "train  documents 2  tokens" in out
    assert "skipped 1 rows" in out
    manifest = json.loads((tmp_path / "other" / "manifest.json").read_text())
    assert manifest["made_by"]["text_key"] == "body"
    assert (tmp_path / "other" / "tokenizer" / "tokenizer.json").is_file()
    (shard,) = manifest["shards"]
    tokens = np.load(tmp_path / "other" / f"{shard['name']}.npy")
    assert (tokens == 1).sum() == (tokens == 3).sum() == 2  # their ends and beginnings


def test_chats_have_targets(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(TALK))
    arguments = ["tokenize", str(tmp_path / "a.jsonl"), str(tmp_path / "out")]
    chat = ["--chat", "--template", "plain", "--tokenizer", "bytes"]
    assert main([*arguments, *chat]) == 0
    (file,) = (tmp_path / "out").glob("*.targets.npy")
    tokens = np.load(file.with_name(file.name.replace(".targets", "")))
    assert bytes(tokens[np.load(file)].tolist()) == b"hat\0"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokenizer", "bytes", "--held-out", "2"], "'2' is not in [0, 1)"),
        (["--tokenizer", "bytes", "--template", "plain"], "--template: only with --chat"),
        ([], "--tokenizer"),
    ],
)
def test_wrong_options_are_refused(options, message, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("x")
    arguments = ["tokenize", str(tmp_path / "a.txt"), str(tmp_path / "out"), *options]
    try:
        status = main(arguments)
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert message in capsys.readouterr().err


def write_run(folder, data: dict) -> str:
    model = {"vocab_size": 256, "embed_dim": 8, "num_layers": 1, "num_heads": 1, "head_dim": 8}
    model |= {"mlp_dim": 8, "num_kv_heads": 1}
    sizes = {"steps": 2, "batch_size": 2, "seq_len": 16}
    run = {"output": str(folder / "run"), "model": model, **sizes, "data": data}
    (folder / "run.yaml").write_text(json.dumps(run))
    return str(folder / "run.yaml")


def test_the_rows_of_a_run_are_shown_as_text_json_and_page(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text("\n".join([json.dumps(TALK)] * 9))
    data = {"chat": [str(tmp_path / "a.jsonl")], "template": "plain", "held_out": 0}
    run = write_run(tmp_path, data)
    assert main(["data", run, "--rows", "1"]) == 0
    out = capsys.readouterr().out
    assert "row 1  documents 1  tokens 9  targets 4  padding 7\nnt:\nhat\\x00\n" in out
    assert main(["data", run, "--json", "--rows", "3", "--seq_len", "32"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["seq_len"] == 32
    assert summary["shown"][0]["documents"][0][1] == {"text": "hat\0", "is_target": True}
    assert main(["data", run, "--html", str(tmp_path / "data.html")]) == 0
    assert "hat" in (tmp_path / "data.html").read_text()
    assert not (tmp_path / "run").exists()


def test_data_without_documents_are_refused(tmp_path, capsys):
    run = write_run(tmp_path, {"task": "colour"})
    assert main(["data", run]) == 2
    assert "run.yaml: its data are no documents" in capsys.readouterr().err
