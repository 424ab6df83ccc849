"""Every field that has moved is known by both of its names, and no other is."""

import dataclasses

import pytest
from flat_config import FLAT, MEANT

from jaxllm.config import (
    MOVED,
    DecoderConfig,
    PositionConfig,
    defaults,
    flatten,
    from_dict,
    is_moved,
    to_dict,
    upgrade_name,
)
from jaxllm.config.moved import check_moved, upgrade


def test_the_new_names_are_those_of_all_fields_of_parts():
    in_parts = {name for name in defaults(DecoderConfig) if "." in name}
    assert sorted(MOVED.values()) == sorted(in_parts)


def test_the_old_names_are_those_that_were_written():
    unmoved = {field.name for field in dataclasses.fields(DecoderConfig)} - {"positions", "init"}
    assert set(MOVED) == set(FLAT) - unmoved


def test_a_flat_config_means_what_it_meant():
    assert from_dict(FLAT) == MEANT


def test_flat_stacks_within_a_config_are_upgraded_as_well():
    encoder = {**FLAT, "causal": False}
    for name in ("vocab_size", "vision", "tie_embeddings", "head_bias"):
        del encoder[name]
    del encoder["logit_scale"], encoder["logit_softcap"]
    decoder = {**FLAT, "cross_attention": True, "qk_norm": "none"}
    config = from_dict({"encoder": encoder, "decoder": decoder, "start_token": 1})
    assert not config.encoder.attention.causal
    assert config.encoder.norms == config.decoder.norms == MEANT.norms
    assert config.decoder.attention.cross
    assert config.decoder.head == MEANT.head


def test_new_names_stay():
    data = to_dict(MEANT)
    assert upgrade(data) == data
    assert upgrade(flatten(MEANT)) == flatten(MEANT)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("norm_eps", "norms.eps"),
        ("rope_scaling.factor", "rope.scaling.factor"),
        ("relative.count", "positions.relative.count"),
        ("positions", "positions.kind"),
        ("encoder.init", "encoder.init.kind"),
        ("decoder.tie_embeddings", "decoder.head.tied"),
        ("num_layers", "num_layers"),
        ("encoder.positions.relative.count", "encoder.positions.relative.count"),
        ("experts.mlp_dim", "experts.mlp_dim"),
        ("vision.norm_eps", "vision.norm_eps"),
    ],
)
def test_one_name_is_upgraded_once(old, new):
    assert upgrade_name(old) == upgrade_name(upgrade_name(old)) == new


def test_a_part_is_not_the_word_that_it_was():
    assert is_moved("positions", "learned")
    assert not is_moved("positions", {"kind": "learned"})
    assert not is_moved("positions", PositionConfig())


def test_all_old_names_are_in_one_error_with_the_new_ones():
    with pytest.raises(ValueError, match=r"^norm_eps is now norms\.eps; init is now init\.kind$"):
        check_moved({"norm_eps": 1e-6, "num_layers": 2, "init": "xavier", "norms.kind": "rms"})
