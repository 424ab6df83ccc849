"""Checkpoint parity: reports on good and wrong checkpoints, clear errors for unusable ones."""

import functools
import json
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from jaxllm.errors import MissingPackageError
from jaxllm.interop import CheckpointError, load_pretrained, parity
from jaxllm.interop.parity.alignment.prompt import text_tokens

check_checkpoint = functools.partial(parity.check_checkpoint, levels=("logits", "layers"))


@pytest.fixture
def folder(make_llama, convert, tmp_path):
    convert(make_llama())
    return tmp_path / "llama"


def test_a_checkpoint_passes(folder):
    report = check_checkpoint(folder)
    assert report.ok
    assert (report.batch_size, report.length) == (2, 384)
    assert report.seed == 0
    assert report.subject == "llama"
    assert {"jax", "torch", "transformers"} <= report.versions.keys()
    json.dumps(report.to_json(), allow_nan=False)


def test_a_model_with_other_weights_fails(folder, make_llama, convert):
    broken = load_pretrained(folder, dtype="float32")
    broken.final_norm.scale[...] *= 1.01
    report = check_checkpoint(str(folder), num_tokens=320, model=broken)
    assert report.first_divergence.path == "final_norm"


@pytest.mark.exhaustive
def test_the_default_is_all_levels_except_the_curve(folder, tokens):
    report = parity.check_checkpoint(folder, tokens=tokens[:1, :64])
    assert report.ok, report.first_divergence
    wanted = {"weights", "config", "logits", "layers", "gradients", "step", "generate"}
    assert report.verdicts.keys() == wanted


def test_text_is_tokenized_by_the_tokenizer_in_the_folder(folder):
    words = {"a": 5, "b": 6, "c": 95}
    Tokenizer(models.WordLevel(words, unk_token="c")).save(str(folder / "tokenizer.json"))
    assert text_tokens("a", folder, 96, 4).tolist() == [[5, 5, 5, 5]]
    report = check_checkpoint(folder, text="a", levels=("logits",))
    assert report.batch_size == 1
    assert report.length == 384
    assert report.seed is None


def test_given_tokens_are_used(folder, tokens):
    report = check_checkpoint(folder, tokens=tokens)
    assert (report.batch_size, report.length, report.seed) == (*tokens.shape, None)


def test_invalid_checkpoints_and_options_are_rejected(folder, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere is not a folder"):
        check_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        check_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="num_tokens=299 is less than 300"):
        check_checkpoint(folder, num_tokens=299)
    with pytest.raises(ValueError, match="both given"):
        check_checkpoint(folder, tokens=np.zeros((1, 300), int), text="a")
    with pytest.raises(TypeError, match="unexpected keyword argument 'nun_tokens'"):
        check_checkpoint(folder, nun_tokens=300)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="model_type 'bert' is not supported; supported are"):
        check_checkpoint(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: not valid JSON"):
        check_checkpoint(folder)


def test_tensors_that_transformers_would_initialize_at_random_are_rejected(folder):
    model = load_pretrained(folder, dtype="float32")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attention_bias": True}))
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.self_attn\.k_proj\.bias"):
        check_checkpoint(folder, model=model)


def test_without_transformers_the_error_names_the_extra_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'jaxllm\[torch\]'"):
        check_checkpoint(folder)
