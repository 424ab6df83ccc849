"""Tests of `jaxllm generate`."""

import dataclasses
import io
import json
import re
import shutil

import numpy as np
import pytest
import source_cases
from kinds import CONFIGS
from tiny import random_model, random_of
from tokenizer_kinds import save_tokenizer

from jaxllm.cli import main
from jaxllm.generation import Continuation, Sampling, TokenRules
from jaxllm.interop import load_pretrained, save_pretrained
from jaxllm.tokenization import load_tokenizer


def test_generate_prints_the_prompt_and_its_continuation(byte_model, capsys):
    arguments = [
        "generate",
        str(byte_model),
        "--prompt",
        "def f(",
        "--max-new-tokens",
        "8",
        "--json",
    ]
    assert main(arguments) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["prompt"] == "def f("
    assert 1 <= len(row["tokens"]) <= 8
    assert main([*arguments[:-1], "--temperature", "0.9", "--top-k", "9", "--top-p", "0.9"]) == 0
    assert capsys.readouterr().out.startswith("def f(")


@pytest.mark.parametrize("damage", ["delete", "rename", "reshape"])
def test_error_names_the_damaged_tensor(damage, byte_model, tmp_path, capsys):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(byte_model / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj.weight"
    tensor = tensors.pop(name)
    if damage == "rename":
        tensors[name.replace("k_proj", "key_proj")] = tensor
    if damage == "reshape":
        tensors[name] = np.concatenate([tensor, tensor])
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((byte_model / "config.json").read_text())
    assert main(["generate", str(tmp_path), "--prompt", "x"]) == 1
    err = capsys.readouterr().err
    assert name in err
    said = {
        "delete": "is missing",
        "rename": "did you mean",
        "reshape": "from the config, 32 in the file",
    }
    assert said[damage] in err


@pytest.mark.exhaustive
def test_beams_replace_sampling(byte_model, capsys):
    command = ["generate", str(byte_model), "--prompt", "ab", "--max-new-tokens", "4"]
    assert main([*command, "--beams", "3"]) == 0
    assert capsys.readouterr().out.startswith("ab")
    assert main([*command, "--beams", "3", "--temperature", "1"]) == 2
    assert "--beams cannot be combined with --temperature" in capsys.readouterr().err


def test_continuous_model_and_damaged_tokenizer_are_rejected(byte_model, tmp_path, capsys):
    vectors, damaged = tmp_path / "vectors", tmp_path / "damaged"
    vectors.mkdir()
    source_cases.write("components-autoregressive", vectors)
    assert main(["generate", str(vectors), "--prompt", "x"]) == 2
    assert "vectors is a SequenceModel, which has no tokens" in capsys.readouterr().err
    shutil.copytree(byte_model, damaged)
    (damaged / "tokenizer.json").write_text("{")
    assert main(["generate", str(damaged), "--prompt", "x"]) == 2
    assert "tokenizer.json is not a tokenizer.json" in capsys.readouterr().err
    text = tmp_path / "text.txt"
    text.write_text("some text")
    command = ["parity", str(damaged), "--text", str(text), "--output", str(tmp_path / "out")]
    assert main([*command, "--levels", "logits"]) == 1
    assert "tokenizer.json is not a tokenizer.json: " in capsys.readouterr().err


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """A decoder with a tokenizer of words, whose special tokens are 0 to 5."""
    folder = tmp_path_factory.mktemp("chat") / "llama"
    save_pretrained(random_model(vocab_size=11, num_layers=1), folder)
    return save_tokenizer("words, end", folder, chat_template="{{ messages[0].content }} <s>")


@pytest.fixture
def given(monkeypatch):
    """Prompts and keywords that the command passes to `generate`. Nothing is computed."""
    calls = []

    def record(model, prompts, limit, **options):
        calls.append({"prompts": prompts, "limit": limit, **options})
        return [Continuation([7, 1], "eos") for _ in prompts]

    monkeypatch.setattr("jaxllm.generation.generate", record)
    monkeypatch.setattr("jaxllm.generation.beam_search", record)
    return calls


def run(folder, *arguments: str) -> None:
    assert main(["generate", str(folder), "--prompt", "the </s> x", *arguments]) == 0


def test_special_tokens_of_a_prompt_are_one_token_unless_it_is_untrusted(chat_model, given, capsys):
    run(chat_model)
    assert "a prompt ends with an end-of-sequence token" in capsys.readouterr().err
    run(chat_model, "--untrusted")
    run(chat_model, "--chat")
    (trusted,), (untrusted,), (chat,) = (call["prompts"] for call in given)
    assert trusted == [6, 1, 10, 1]
    assert untrusted[0] == 6
    assert 1 not in untrusted[:-1]
    assert chat == [6, 1, 10, 3]
    assert main(["generate", str(chat_model), "--prompt", "x", "--chat", "--untrusted"]) == 2


def test_bytes_have_no_chat_template(byte_model, chat_model, given, capsys, monkeypatch):
    """Not even that of the folder in which the command runs."""
    monkeypatch.chdir(chat_model)
    command = ["generate", str(byte_model), "--prompt", "x", "--tokenizer", "bytes", "--chat"]
    assert main(command) == 2
    assert "a chat needs a tokenizer with a chat template" in capsys.readouterr().err


def test_generation_config_is_followed_or_named(chat_model, given, tmp_path, capsys):
    folder = shutil.copytree(chat_model, tmp_path / "llama")
    fields = {"eos_token_id": [1, 5], "suppress_tokens": [8], "repetition_penalty": 1.5}
    settings = {**fields, "max_new_tokens": 9, "do_sample": True, "guidance_scale": 2}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    run(folder)
    said = capsys.readouterr()
    assert said.out == "the </s> xcat\n"  # without the token that ends it
    assert "generation_config.json: not followed: guidance_scale=2" in said.err
    run(folder, "--max-new-tokens", "3", "--repetition-penalty", "2")
    run(folder, "--beams", "2")
    assert "not followed with --beams: do_sample=True" in capsys.readouterr().err
    run(folder, "--temperature", "0", "--cache-dtype", "int8")
    assert given[-1]["cache_dtype"] == "int8"
    by_file, by_options, beams, greedy = given
    assert by_file["sampling"] == Sampling(repetition_penalty=1.5, temperature=1.0, top_k=50)
    assert greedy["sampling"] == Sampling(repetition_penalty=1.5)
    for call in given:
        assert call["eos_ids"] == (1, 5)
        assert call["rules"] == TokenRules(suppress=(8,))
    assert (by_file["limit"], by_file["sampling"].repetition_penalty) == (9, 1.5)
    assert (by_options["limit"], by_options["sampling"].repetition_penalty) == (3, 2)
    assert (beams["repetition_penalty"], beams["length_penalty"]) == (1.5, 1)
    (folder / "generation_config.json").write_text('{"eos_token_id": 11}')
    assert main(["generate", str(folder), "--prompt", "x"]) == 2
    assert "eos_token_id is 11; it must be a token id from 0 to 10" in capsys.readouterr().err


def test_bytes_end_with_their_own_token(byte_model, given, tmp_path):
    """Whatever the config class of transformers has as its default."""
    folder = shutil.copytree(byte_model, tmp_path / "bytes")
    (folder / "generation_config.json").write_text('{"eos_token_id": 50256}')
    run(folder)
    assert given[0]["eos_ids"] == (0,)


def test_a_model_whose_tokens_are_not_bytes_is_not_prompted_on_bytes(tmp_path, given, capsys):
    save_pretrained(random_model(vocab_size=300, num_layers=1), tmp_path / "llama")
    command = ["generate", str(tmp_path / "llama"), "--prompt", "x"]
    assert main(command) == 2
    assert "vocab_size of 300 tokens is not that of bytes" in capsys.readouterr().err
    assert main([*command, "--tokenizer", "bytes"]) == 0
    assert given[0]["prompts"] == [[120]]
    (tmp_path / "llama" / "tokenizer.model").write_text("{}")
    assert main(command) == 2
    assert "transformers cannot read its tokenizer.model" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_a_run_is_prompted_as_it_was_trained(chat_model, given, tmp_path, capsys):
    """With the tokenizer of the checkpoint that it began with, which its config does not name."""
    text = tmp_path / "text.txt"
    text.write_text("the cat a b x " * 20)
    config = {
        "output": str(tmp_path / "run"),
        "init_from": str(chat_model),
        **{"steps": 1, "batch_size": 8, "seq_len": 8, "mesh": {"fsdp": 8}},
        "optimizer": {"warmup_steps": 0},
        "data": {"text": [str(text)], "held_out": 0},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    assert main(["train", str(tmp_path / "run.yaml")]) == 0
    run(tmp_path / "run")
    assert given[-1]["prompts"] == [[6, 1, 10, 1]]
    # A run that begins with this one knows its tokenizer too, and bytes are never taken instead.
    again = {**config, "output": str(tmp_path / "again"), "init_from": str(tmp_path / "run")}
    (tmp_path / "run.yaml").write_text(json.dumps(again))
    assert main(["train", str(tmp_path / "run.yaml")]) == 0
    run(tmp_path / "again")
    assert given[-1]["prompts"] == [[6, 1, 10, 1]]


def test_a_run_of_a_new_model_takes_its_tokenizer_along(given, tmp_path):
    """Its data named the tokenizer, which was moved since; exports have it and its ids."""
    tokenizer = save_tokenizer("words, end", tmp_path / "tokenizer")
    (tmp_path / "text.txt").write_text("the cat a b x " * 20)
    config = {
        "output": str(tmp_path / "run"),
        "model": {
            **{"vocab_size": 11, "embed_dim": 8, "num_layers": 1, "num_heads": 1},
            **{"num_kv_heads": 1, "head_dim": 8, "mlp_dim": 8},
        },
        **{"steps": 1, "batch_size": 8, "seq_len": 8, "mesh": {"fsdp": 8}},
        "optimizer": {"warmup_steps": 0},
        "data": {
            **{"text": [str(tmp_path / "text.txt")], "held_out": 0},
            "tokenizer": str(tokenizer),
        },
    }
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    assert main(["train", str(tmp_path / "run.yaml")]) == 0
    tokenizer.rename(tmp_path / "elsewhere")
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    run(moved)
    assert given[-1]["prompts"] == [[6, 1, 10, 1]]
    assert main(["convert", str(moved), str(tmp_path / "hf")]) == 0
    assert (tmp_path / "hf" / "tokenizer.json").is_file()
    end = json.loads((tmp_path / "hf" / "config.json").read_text())["eos_token_id"]
    assert end == load_tokenizer(tmp_path / "elsewhere").eos_id
    save_pretrained(load_pretrained(moved), tmp_path / "saved", format="hf")
    assert (tmp_path / "saved" / "tokenizer.json").is_file()


def test_an_encoder_reads_a_source_with_its_end_token(given, tmp_path):
    folder = tmp_path / "t5"
    config = dataclasses.replace(CONFIGS["encoder-decoder"], start_token=0)
    save_pretrained(random_of(config), folder, format="native")
    save_tokenizer("words, end", folder)
    run(folder)
    assert given[0]["prompts"] == [[6, 1, 10, 1]]
    run(folder, "--tokenizer", str(save_tokenizer("words", tmp_path / "plain")))
    assert given[1]["prompts"] == [[6, 1, 10]]


def test_prompts_come_from_files_and_stdin(chat_model, given, tmp_path, monkeypatch, capsys):
    file = tmp_path / "one.txt"
    file.write_text("the cat")
    monkeypatch.setattr("sys.stdin", io.StringIO("a b"))
    command = ["generate", str(chat_model)]
    assert main([*command, "--prompt", "x", "--file", str(file), "--file", "-"]) == 0
    assert [prompt[:-1] for prompt in given[0]["prompts"]] == [[10], [6, 7], [8, 9]]
    monkeypatch.setattr("sys.stdin", io.StringIO("the"))
    assert main(command) == 0
    assert given[1]["prompts"] == [[6, 1]]
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", terminal)
    assert main(command) == 2
    assert "no prompt: give --prompt TEXT, --file FILE" in capsys.readouterr().err


def test_several_continuations_and_their_statistics(byte_model, capsys):
    command = ["generate", str(byte_model), "--prompt", "ab", "--max-new-tokens", "4", "--json"]
    assert main([*command, "--n", "3", "--temperature", "2", "--stats"]) == 0
    said = capsys.readouterr()
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert [row["prompt"] for row in rows] == ["ab"] * 3
    assert len({tuple(row["tokens"]) for row in rows}) > 1
    assert all(row["ended"] == "length" or row["tokens"][-1] == 0 for row in rows)
    assert re.search(r"\d+ tokens, the first after .* s, then .* tokens/s; peak memory", said.err)
    assert main([*command, "--n", "3", "--beams", "2"]) == 2
    assert "--n 3 is more than --beams 2" in capsys.readouterr().err


def test_a_terminal_sees_the_text_while_it_is_written(byte_model, capsys, monkeypatch):
    command = ["generate", str(byte_model), "--prompt", "ab", "--max-new-tokens", "8"]
    assert main(command) == 0
    whole = capsys.readouterr().out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(command) == 0
    assert capsys.readouterr().out == whole


@pytest.mark.exhaustive
def test_a_mesh_gives_the_same_text(byte_model, capsys):
    command = ["generate", str(byte_model), "--prompt", "ab", "--max-new-tokens", "8"]
    assert main(command) == 0
    alone = capsys.readouterr().out
    assert main([*command, "--mesh", "fsdp=4", "tensor=2"]) == 0
    assert capsys.readouterr().out == alone


def test_a_system_message_needs_a_chat(chat_model, capsys):
    assert main(["generate", str(chat_model), "--prompt", "x", "--system", "be kind"]) == 2
    assert "--system needs --chat" in capsys.readouterr().err


def test_a_draft_gives_the_same_text_and_its_acceptance(byte_model, chat_model, tmp_path, capsys):
    command = ["generate", str(byte_model), "--prompt", "ab", "--max-new-tokens", "12", "--stats"]
    assert main(command) == 0
    alone = capsys.readouterr()
    assert main([*command, "--draft", str(byte_model), "--draft-tokens", "3"]) == 0
    drafted = capsys.readouterr()
    assert drafted.out == alone.out
    assert re.search(r"MiB; \d+% of \d+ drafted tokens accepted\n", drafted.err)
    assert "drafted" not in alone.err
    for wrong, message in (
        (["--draft", str(chat_model)], "has another vocabulary: its token 0 is"),
        (["--draft", str(byte_model), "--beams", "2"], "--beams cannot be combined with --draft"),
        (["--draft", str(tmp_path / "nothing")], "nothing"),
    ):
        assert main([*command, *wrong]) == 2
        assert message in capsys.readouterr().err
