"""Configs as they are released are read with transformers' logits, and written field for field."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import torch
import transformers
from hf_case import LENGTH, randomize
from released_configs import RELEASED
from tiers import examples
from tiny import relative_l2

from jaxllm.config import EncoderDecoderConfig
from jaxllm.interop import inspect, load_pretrained, save_pretrained

TOLERANCE = 1e-5  # relative L2 of logits, float32
QUICK = ("llama/yarn of its own code", "llama/other libraries", "qwen2/window off", "gpt2", "bart")


class Built(NamedTuple):
    """A config, the folder with the weights and that config, and transformers' model of it."""

    config: dict[str, Any]
    folder: Path
    original: torch.nn.Module


@pytest.fixture(scope="module", params=examples(RELEASED, *QUICK))
def built(request, tmp_path_factory) -> Built:
    """A model that transformers builds from the config as it stands, with random weights."""
    config, folder = RELEASED[request.param], tmp_path_factory.mktemp("released")
    (folder / "config.json").write_text(json.dumps(config))
    read = transformers.AutoConfig.from_pretrained(folder)
    is_pair = read.is_encoder_decoder
    auto = transformers.AutoModelForSeq2SeqLM if is_pair else transformers.AutoModelForCausalLM
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    randomize(auto.from_config(read, **options)).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").unlink(missing_ok=True)
    return Built(config, folder, auto.from_pretrained(folder, **options).eval())


def tokens_of(built: Built, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(4, built.config["vocab_size"], (1, LENGTH))


@pytest.mark.cases(2, exhaustive=12)
def test_the_logits_are_those_of_transformers(built):
    model, tokens, source = load_pretrained(built.folder), tokens_of(built, 1), tokens_of(built, 2)
    given = {"input_ids": torch.from_numpy(tokens)}
    if isinstance(model.config, EncoderDecoderConfig):
        given = {"input_ids": torch.from_numpy(source), "decoder_input_ids": given["input_ids"]}
        found = jax.jit(lambda model, *inputs: model(*inputs).logits)(model, source, tokens)
    else:
        found = jax.jit(lambda model, inputs: model(inputs).logits)(model, tokens)
    with torch.no_grad():
        expected = built.original(**given).logits.numpy()
    assert relative_l2(found, expected) <= TOLERANCE


def test_the_config_is_exported_field_for_field(built, tmp_path):
    save_pretrained(load_pretrained(built.folder), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == built.config


def test_every_field_is_read_or_known_not_to_be(built):
    found = inspect(built.folder)
    assert found.ok
    assert set(found.fields.values()) <= {"read", "ignored", "not used"}
    assert built.config.keys() <= found.fields.keys()
