"""Families with the names of BART: stored sinusoids, paddings, and refused configs."""

import json

import numpy as np
import pytest
import torch
import transformers
from encoder_decoder_cases import CASES
from hf_case import stored

from jaxllm.config import with_fields
from jaxllm.interop import CheckpointError, from_torch, load_pretrained, save_pretrained, to_torch
from jaxllm.interop.families import FAMILIES

BY_NAME = {family.name: family for family in FAMILIES}


def positions_in(folder):
    return {name for name in stored(folder) if "embed_positions" in name}


@pytest.mark.parametrize("name", ["pegasus", "marian"])
def test_sinusoids_are_stored_only_where_the_original_stores_them(name, tmp_path):
    original = CASES[name].build()
    original.save_pretrained(tmp_path / "original")
    model = load_pretrained(tmp_path / "original")
    model.origin = None
    save_pretrained(model, tmp_path / "new", format="hf")
    assert bool(positions_in(tmp_path / "new")) is (name == "pegasus")
    assert positions_in(tmp_path / "new") == positions_in(tmp_path / "original")
    assert stored(tmp_path / "new") == stored(tmp_path / "original")


def test_a_pegasus_without_stored_sinusoids_is_written_without_them(tmp_path):
    original = CASES["pegasus"].build()
    whole = original.state_dict()
    state = {name: x for name, x in whole.items() if "embed_positions" not in name}
    original.save_pretrained(tmp_path / "original", state_dict=state)
    model = load_pretrained(tmp_path / "original")
    save_pretrained(model, tmp_path / "out")
    assert not positions_in(tmp_path / "out")
    assert stored(tmp_path / "out") == stored(tmp_path / "original")


@pytest.mark.parametrize("name", ["pegasus", "marian"])
def test_sinusoids_of_a_module_come_back_bit_for_bit(name):
    module = CASES[name].build()
    state = to_torch(from_torch(module))
    for stack in ("encoder", "decoder"):
        place = f"model.{stack}.embed_positions.weight"
        assert torch.equal(state[place], module.state_dict()[place])
        assert np.abs(state[place].numpy()).max() <= 1


def test_positions_of_m2m_100_begin_after_the_padding_token(tmp_path):
    CASES["m2m_100/unscaled-gelu"].build().save_pretrained(tmp_path)
    config = load_pretrained(tmp_path).config
    assert (config.encoder.positions.offset, config.decoder.positions.offset) == (4, 4)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("marian", "share_encoder_decoder_embeddings", False),
        ("marian", "decoder_vocab_size", 90),
        ("bart", "is_encoder_decoder", False),
    ],
)
def test_fields_that_matter_are_refused(name, field, value, tmp_path):
    CASES[name].build().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(CheckpointError, match=f"{field}={value!r} is not supported"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("mbart", {"norms.placement": "post"}, "norms.placement='post' in the encoder"),
        ("m2m_100", {"positions.offset": 0}, "positions.offset=0"),
        ("pegasus", {"positions.waves": "power"}, "positions.waves='power'"),
    ],
)
def test_models_of_another_shape_are_refused(name, changes, said, tmp_path):
    CASES[name].build().save_pretrained(tmp_path)
    config = load_pretrained(tmp_path).config
    with pytest.raises(ValueError, match=said):
        BY_NAME[name].write_config(with_fields(config, changes), {})


def test_a_marian_without_head_is_named_as_in_transformers(tmp_path):
    original = CASES["marian"].build().model
    original.save_pretrained(tmp_path / "original")
    model = load_pretrained(tmp_path / "original")
    assert model.config.decoder.head.kind == "none"
    save_pretrained(model, tmp_path / "out")
    assert stored(tmp_path / "out") == stored(tmp_path / "original")
    again, info = transformers.MarianModel.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert isinstance(again, transformers.MarianModel)
    assert not info["missing_keys"] | info["unexpected_keys"]
