"""A field that the catalogue does not list changes no bit of the logits, whatever its value."""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import torch
import transformers
from encoder_decoder_cases import CASES as PAIRS
from hf_cases import CASES as DECODERS
from tiers import examples
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from benchmarks.config_fields import HARMLESS
from jaxllm.interop import load_pretrained, save_pretrained
from jaxllm.interop.families.common.config_fields import ReadFields, fields_read
from jaxllm.models import Model

ALL = {name: case for name, case in {**DECODERS, **PAIRS}.items() if "/" not in name}
LENGTH = 24
NUM_FIELDS = 40  # of all that were ever seen, in a config
ODD = (True, False, 0, -1, 3, 10**6, 0.5, "", "odd", None, [], [1, "x"], {}, {"type": "odd"})
OTHERS = (
    *("unsloth_version", "auto_map", "_name_or_path", "_model_name_or_path", "unk_token_id"),
    *("use_mrope", "rope_interleaved", "pretraining_tp", "transformers.js_config", "max_length"),
    *("temperature", "task_specific_params", "dual_chunk_attention_config", "new field"),
)
# Fields that transformers checks when it reads a config, and so accepts only some values of.
CHECKED = ("id2label", "label2id", "problem_type", "num_labels", "dtype", "torch_dtype")


class Built(NamedTuple):
    """A checkpoint of transformers, its model type, the model loaded from it, and its logits."""

    folder: Path
    model_type: str
    model: Model
    logits: np.ndarray


@jax.jit
def run(model: Model, *tokens: Any) -> jax.Array:
    return model(*tokens).logits


def tokens_for(model_type: str) -> list[np.ndarray]:
    count = 2 if CONFIG_MAPPING[model_type]().is_encoder_decoder else 1
    return [np.random.default_rng(i).integers(4, 90, (1, LENGTH)) for i in range(count)]


@pytest.fixture(scope="module", params=examples(ALL, "qwen2"))
def built(request, tmp_path_factory) -> Built:
    folder = tmp_path_factory.mktemp("unused")
    ALL[request.param].build().save_pretrained(folder)
    model = load_pretrained(folder)
    return Built(folder, request.param, model, np.asarray(run(model, *tokens_for(request.param))))


def names_of_all_models() -> list[str]:
    """Returns the fields of every config class of transformers, and those of other tools."""
    found = set(OTHERS)
    for kind in CONFIG_MAPPING.values():
        found |= {field.name for field in dataclasses.fields(kind)}
    return sorted(found)


def draw_unused(reads: ReadFields, given: dict, seed: int) -> dict[str, Any]:
    """Draws fields that the catalogue does not list, with odd values."""
    chance = random.Random(seed)
    names = [
        name
        for name in names_of_all_models()
        if name not in {*reads.fields, *reads.aliases, *given, *CHECKED}
    ]
    return {name: chance.choice(ODD) for name in chance.sample(names, NUM_FIELDS)}


def with_fields(built: Built, folder: Path, fields: dict[str, Any]) -> Path:
    """Returns a copy of the checkpoint with more fields; the weights are links."""
    folder.mkdir()
    for file in built.folder.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((built.folder / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    return folder


@pytest.mark.cases(1, exhaustive=8)
@pytest.mark.parametrize("seed", range(3))
def test_unused_fields_change_no_bit_and_are_kept(built, seed, tmp_path):
    given = json.loads((built.folder / "config.json").read_text())
    fields = draw_unused(fields_read(built.model_type), given, seed)
    folder = with_fields(built, tmp_path / "more", fields)
    model = load_pretrained(folder)
    assert model.config == built.model.config
    np.testing.assert_array_equal(run(model, *tokens_for(built.model_type)), built.logits)
    save_pretrained(model, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {**given, **fields}


@pytest.mark.cases(1, exhaustive=6)
def test_transformers_is_as_indifferent_to_each_of_them(built, tmp_path):
    """Checked for those fields that transformers accepts with such a value."""
    given = json.loads((built.folder / "config.json").read_text())
    fields = draw_unused(fields_read(built.model_type), given, seed=0)
    fields = {name: value for name, value in fields.items() if not HARMLESS.fullmatch(name)}
    accepted = {}
    for name, value in fields.items():
        try:
            CONFIG_MAPPING[built.model_type](**{**given, name: value})
        except Exception:  # whatever its checks raise
            continue
        accepted[name] = value
    assert len(accepted) > len(fields) / 2
    folder = with_fields(built, tmp_path / "more", accepted)
    np.testing.assert_array_equal(logits_of(folder, built), logits_of(built.folder, built))


def logits_of(folder: Path, built: Built) -> np.ndarray:
    kind = CONFIG_MAPPING[built.model_type]
    is_pair = kind().is_encoder_decoder
    auto = transformers.AutoModelForSeq2SeqLM if is_pair else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(folder, attn_implementation="eager").eval()
    names = ("input_ids", "decoder_input_ids")
    tokens = map(torch.from_numpy, tokens_for(built.model_type))
    with torch.no_grad():
        return model(**dict(zip(names, tokens, strict=False))).logits.numpy()
