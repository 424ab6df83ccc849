"""`jaxllm eval`: the loss that transformers and PEFT have on the same documents."""

import json
import math

import pytest
import torch
from adapter_cases import make_adapter
from tokenizer_kinds import save_tokenizer
from transformers import AutoModelForCausalLM

from jaxllm.cli import main
from jaxllm.tokenization import load_tokenizer

TEXTS = ["the cat", "Hello", "and the hat, and 123", "x"]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"body": text}) for text in TEXTS))
    return path


def loss_of(model, documents) -> float:
    total = count = 0.0
    for ids in documents:
        tokens = torch.tensor([ids])
        with torch.no_grad():
            total += model(tokens, labels=tokens).loss.item() * (len(ids) - 1)
        count += len(ids) - 1
    return total / count


def test_the_figures_are_those_of_transformers(byte_model, file, capsys):
    arguments = ["eval", str(byte_model), str(file), "--text-key", "body", "--seq-len", "40"]
    assert main([*arguments, "--tokenizer", "bytes", "--batch-size", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    model = AutoModelForCausalLM.from_pretrained(byte_model).eval()
    documents = [[*text.encode(), 0] for text in TEXTS]
    expected = loss_of(model, documents)
    assert found["loss"] == pytest.approx(expected, rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
    assert found["tokens"] == sum(len(ids) - 1 for ids in documents)
    assert main([*arguments, "--tokenizer", "bytes", "--mesh", "fsdp=2", "data=4"]) == 0
    out = capsys.readouterr().out
    assert f"loss {expected:.4f} nats per token  perplexity " in out
    assert "tokens 33  length 40" in out


def test_an_adapter_is_evaluated_with_its_base(file, tmp_path, capsys):
    theirs = make_adapter("llama", tmp_path)
    tokenizer = save_tokenizer("words, end", tmp_path / "tokenizer")
    arguments = ["eval", str(tmp_path / "adapter"), str(file), "--text-key", "body", "--json"]
    assert main([*arguments, "--tokenizer", str(tokenizer)]) == 0
    found = json.loads(capsys.readouterr().out)
    encode = load_tokenizer(str(tokenizer)).encode_document
    documents = [ids for text in TEXTS if len(ids := encode(text)) > 1]
    assert found["loss"] == pytest.approx(loss_of(theirs, documents), rel=1e-5)
    with theirs.disable_adapter():
        base = loss_of(theirs, documents)
    assert abs(found["loss"] - base) > 0.01
    assert main([*arguments, "--tokenizer", str(tokenizer), "--no-strict"]) == 2
    assert "leave out --allow and --no-strict" in " ".join(capsys.readouterr().err.split())
    arguments[1:2] = [str(tmp_path / "base"), "--base", "elsewhere"]
    assert main([*arguments, "--tokenizer", str(tokenizer)]) == 2
    assert "--base: " in capsys.readouterr().err


def test_other_models_and_files_are_refused(byte_model, tmp_path, capsys):
    assert main(["eval", str(byte_model), str(tmp_path / "none.txt"), "--tokenizer", "bytes"]) == 2
    assert "no file matches" in capsys.readouterr().err
    (tmp_path / "a.txt").write_text("one text of several tokens")
    options = ["--tokenizer", "bytes", "--mesh", "data=8", "--batch-size", "4"]
    assert main(["eval", str(byte_model), str(tmp_path / "a.txt"), *options]) == 2
    assert "batch_size=4 is not a multiple of data x fsdp = 8" in capsys.readouterr().err
