"""The tokenizer of a model is the given one, or the checkpoint's own."""

import json

import pytest
from tiny import random_model
from tokenizer_kinds import save_tokenizer

from jaxllm.commands.generation.tokenizers import find_tokenizer_of, own_folders
from jaxllm.config import to_dict
from jaxllm.interop import load_pretrained, save_pretrained
from jaxllm.tokenization import ByteTokenizer


def test_the_given_tokenizer_comes_before_the_checkpoint_s_own(tmp_path):
    folder = tmp_path / "llama"
    save_pretrained(random_model(vocab_size=11, num_layers=1), folder)
    save_tokenizer("words, end", folder)
    model = load_pretrained(folder)
    assert own_folders(str(folder), model)[0] == folder
    place, tokenizer = find_tokenizer_of(str(folder), None, model)
    assert place == folder
    assert tokenizer.encode("the") == [6]
    other = save_tokenizer("words", tmp_path / "other")
    assert find_tokenizer_of(str(folder), str(other), model)[0] == other


def test_bytes_have_no_folder(byte_model):
    model = load_pretrained(byte_model)
    place, tokenizer = find_tokenizer_of(str(byte_model), "bytes", model)
    assert place is None
    assert isinstance(tokenizer, ByteTokenizer)


@pytest.mark.parametrize("data", [{"chat": ["a.jsonl"]}, {"preferences": ["a.jsonl"]}], ids=str)
def test_a_run_of_chats_or_preferences_has_the_tokenizer_it_was_trained_with(data, tmp_path):
    model = random_model(vocab_size=11, num_layers=1)
    chosen = save_tokenizer("words, end", tmp_path / "tokenizer")
    config = {
        **{"output": str(tmp_path / "run"), "steps": 1, "batch_size": 1, "seq_len": 4},
        **{"model": to_dict(model.config), "data": {**data, "tokenizer": str(chosen)}},
    }
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(json.dumps(config))
    assert find_tokenizer_of(str(tmp_path / "run"), None, model)[0] == chosen
