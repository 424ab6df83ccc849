"""Checkpoint parity: reports on good and wrong checkpoints, clear errors for unusable ones."""

import functools
import json
import sys

import numpy as np
import pytest
from tiers import examples
from tokenizers import Tokenizer, models

from jaxllm.errors import MissingPackageError, UserError
from jaxllm.interop import CheckpointError, load_pretrained, parity
from jaxllm.interop.parity.alignment.prompt import text_ids
from jaxllm.interop.parity.golden import record_checkpoint
from jaxllm.interop.parity.numerics.precision import PRECISIONS
from jaxllm.interop.parity.render import html

check_checkpoint = functools.partial(parity.check_checkpoint, levels=("logits", "layers"))


@pytest.fixture
def folder(make_llama, convert, tmp_path):
    convert(make_llama())
    return tmp_path / "llama"


def test_a_checkpoint_passes(folder):
    report = check_checkpoint(folder)
    assert report.ok
    assert (report.batch_size, report.length) == (2, 320)
    assert report.seed == 0
    assert report.subject == "llama"
    assert {"jax", "torch", "transformers"} <= report.versions.keys()
    json.dumps(report.to_json(), allow_nan=False)


@pytest.mark.exhaustive
def test_a_report_says_when_where_and_of_what_it_is(folder, tokens):
    report = check_checkpoint(folder, tokens=tokens, levels=("logits",))
    assert report.date.endswith(" UTC")
    assert report.paths == {"model": str(folder.resolve()), "reference": str(folder.resolve())}
    assert len(report.digests) == 4
    for what in ("weights", "config"):
        ours, theirs = (report.digests[f"{what} of the {side}"] for side in ("model", "reference"))
        assert ours == theirs
        assert len(ours) == 64
    page = html.render(report)
    for text in (*report.digests.values(), report.date, "Both sides read the same files"):
        assert text in page


def test_a_model_with_other_weights_fails(folder, make_llama, convert):
    broken = load_pretrained(folder, dtype="float32")
    broken.final_norm.scale[...] *= 1.01
    report = check_checkpoint(str(folder), num_tokens=320, model=broken)
    assert report.first_divergence.path == "final_norm"


@pytest.mark.cases(0, exhaustive=1)
@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", examples(["bfloat16", "float16"], "bfloat16"))
def test_a_checkpoint_is_compared_in_narrow_dtypes(folder, dtype):
    report = parity.check_checkpoint(folder, dtype=dtype, random=True)
    assert report.ok, report.first_divergence
    assert report.verdicts.keys() == {"weights", "config", "logits", "layers"}
    assert report.dtype == dtype
    alone = [tap.forced for tap in report.taps if tap.forced]
    unit = PRECISIONS[dtype].unit_roundoff
    assert 0.1 * unit < max(error.relative_l2 for error in alone) < unit
    assert max(error.threshold for error in alone) < 10 * unit
    broken = load_pretrained(folder, dtype=dtype)
    broken.final_norm.scale[...] *= 1.03
    report = check_checkpoint(folder, dtype=dtype, model=broken)
    assert report.first_divergence.path == "final_norm"


def test_training_exists_in_float32_alone(folder):
    with pytest.raises(ValueError, match=r"one of weights, config, logits, layers$"):
        parity.check_checkpoint(folder, dtype="bfloat16", levels=("step",))
    with pytest.raises(ValueError, match="dtype='int8' is not one of float32, float16, bfloat16"):
        parity.check_checkpoint(folder, dtype="int8")


@pytest.mark.exhaustive
def test_the_default_is_all_levels_except_the_curve(folder, tokens):
    report = parity.check_checkpoint(folder, tokens=tokens[:1, :64])
    assert report.ok, report.first_divergence
    wanted = {"weights", "config", "logits", "layers", "gradients", "step", "generate"}
    assert report.verdicts.keys() == wanted


def test_english_text_is_the_default_where_there_is_a_tokenizer(folder):
    assert check_checkpoint(folder, levels=("config",)).inputs == "random tokens"
    words = {"the": 5, "a": 6, "?": 95}
    Tokenizer(models.WordLevel(words, unk_token="?")).save(str(folder / "tokenizer.json"))
    report = check_checkpoint(folder, levels=("logits",), seed=3)
    assert report.ok
    assert report.inputs == "English text with rare, repeated and special tokens"
    assert (report.seed, report.batch_size, report.length) == (3, 2, 320)
    assert check_checkpoint(folder, levels=("config",), random=True).inputs == "random tokens"
    with pytest.raises(ValueError, match="text and random are given together"):
        check_checkpoint(folder, text="a", random=True)


def test_text_is_tokenized_by_the_tokenizer_in_the_folder(folder):
    words = {"a": 5, "b": 6, "c": 95}
    Tokenizer(models.WordLevel(words, unk_token="c")).save(str(folder / "tokenizer.json"))
    assert text_ids("a", folder, 96).tolist() == [5]
    report = check_checkpoint(folder, text="a", levels=("logits",))
    assert report.batch_size == 1
    assert report.length == 320
    assert report.seed is None


@pytest.mark.exhaustive
def test_given_tokens_are_used(folder, tokens):
    report = check_checkpoint(folder, tokens=tokens)
    assert (report.batch_size, report.length, report.seed) == (*tokens.shape, None)


def test_invalid_checkpoints_and_options_are_rejected(folder, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere is not a folder"):
        check_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"lama is not a folder; did you mean 'llama'\?"):
        check_checkpoint(tmp_path / "lama")
    with pytest.raises(CheckpointError, match=r"config\.json is missing") as missing:
        check_checkpoint(tmp_path)
    assert "jaxllm convert" not in str(missing.value)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "params.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no config\.json .* `jaxllm convert .*meta NEW"):
        check_checkpoint(tmp_path / "meta")
    with pytest.raises(UserError, match="choose at least one of weights"):
        parity.check_checkpoint(tmp_path / "meta", levels=["wieghts"])
    with pytest.raises(UserError, match="choose at least one of weights"):
        record_checkpoint(tmp_path / "meta", tmp_path / "pack", levels=["wieghts"])
    with pytest.raises(ValueError, match="num_tokens=299 is less than 300"):
        check_checkpoint(folder, num_tokens=299)
    with pytest.raises(ValueError, match="tokens and text are given together"):
        check_checkpoint(folder, tokens=np.zeros((1, 300), int), text="a")
    with pytest.raises(TypeError, match="unexpected keyword argument 'nun_tokens'"):
        check_checkpoint(folder, nun_tokens=300)
    for model_type in ("bert", ["llama"]):
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        with pytest.raises(CheckpointError) as error:
            check_checkpoint(folder)
        assert f"model_type {model_type!r} is not supported" in str(error.value)
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
