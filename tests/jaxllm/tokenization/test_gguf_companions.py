"""Tokenizers in GGUF files: the same ids as transformers', and files for whatever needs files."""

import importlib.util

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

gguf = pytest.importorskip("gguf")
pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from jaxllm.errors import MissingPackageError, UserError
from jaxllm.tokenization import find_tokenizer, load_tokenizer
from jaxllm.tokenization.chat import render_chat
from jaxllm.tokenization.gguf_companions import companion_folder
from jaxllm.tokenization.special_tokens import find_eos_ids

PLAIN = "low lower lowest, 12 ÄÖ"
TEXT = f"{PLAIN}<|end|>"
TEMPLATE = "{% for m in messages %}<|start|>{{ m['content'] }}<|end|>{% endfor %}"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A byte-level BPE tokenizer, as of GPT-2 and most since, in a file without tensors."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("l", "o"), ("lo", "w"), ("e", "r")]
    tokens = [*alphabet, "lo", "low", "er", "<|start|>", "<|end|>"]
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 2) + [3, 3])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(len(tokens) - 2)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_chat_template(TEMPLATE)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    expected = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    expected.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return path, expected, len(tokens)


def test_ids_are_those_of_the_tokens_and_merges_in_the_file(file):
    path, expected, size = file
    assert find_tokenizer([path.parent / "missing", path]) == path
    tokenizer = load_tokenizer(path)
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    assert tokenizer.encode_chat(TEXT) == theirs.encode(TEXT, add_special_tokens=False)
    assert tokenizer.encode_chat(TEXT) == [*expected.encode(PLAIN).ids, size - 1]
    assert load_tokenizer(companion_folder(path)).fingerprint == tokenizer.fingerprint


def test_the_template_and_the_end_token_are_files_too(file):
    path, _, size = file
    folder = companion_folder(path)
    assert companion_folder(path) == folder
    assert find_eos_ids(folder, size) == (size - 1,)
    for place in (path, folder):
        text = render_chat(place, [{"role": "user", "content": "low"}])
        assert text == "<|start|>low<|end|>"


def test_other_paths_are_their_own_companions(tmp_path):
    (tmp_path / "model.bin").touch()
    for path in (tmp_path, tmp_path / "model.bin", tmp_path / "missing.gguf"):
        assert companion_folder(path) == path


def test_a_file_without_a_tokenizer_is_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "empty.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UserError, match=r"empty.gguf: transformers cannot read its tokenizer"):
        companion_folder(tmp_path / "empty.gguf")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").touch()
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name)
    )
    with pytest.raises(MissingPackageError, match=r"gguf must be installed: pip install"):
        companion_folder(tmp_path / "model.gguf")
