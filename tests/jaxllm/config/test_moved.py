"""Old field names are recognized and upgraded to the current dotted names."""

import copy
import dataclasses
import pickle
from operator import attrgetter

import pytest
from flat_config import FLAT, MEANT
from tiny import TINY

from jaxllm.config import (
    MOVED,
    DecoderConfig,
    PositionConfig,
    defaults,
    flatten,
    from_dict,
    is_moved,
    make_config,
    to_dict,
    upgrade_name,
    upgraded,
)
from jaxllm.config.moved import PARTS, check_moved


def test_new_names_are_all_the_nested_fields_that_were_flat_once():
    later = {
        *("numerics.wide_residual", "numerics.reduce_dtype", "head.kind", "attention.kernel"),
        *("attention.scale_by_depth", "attention.sinks", "attention.latent", "mlp.clamp"),
        *("attention.gated", "attention.delta", "norms.sequence_parallel"),
        "numerics.matmul_dtype",
    }
    in_parts = {name for name in defaults(DecoderConfig) if "." in name} - later
    assert sorted(MOVED.values()) == sorted(in_parts)


def test_old_names_are_the_fields_of_flat_configs():
    unmoved = {field.name for field in dataclasses.fields(DecoderConfig)} - {"positions", "init"}
    assert set(MOVED) == set(FLAT) - unmoved


def test_flat_config_is_read_with_its_original_meaning():
    assert from_dict(FLAT) == MEANT


def test_flat_encoder_and_decoder_are_upgraded():
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


def test_current_names_are_not_changed():
    data = to_dict(MEANT)
    assert upgraded(data) == data
    assert make_config(upgraded(flatten(MEANT))) == MEANT


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
        ("encoder", "encoder"),
        ("decoder", "decoder"),
        ("encoder.positions.relative.count", "encoder.positions.relative.count"),
        ("pattern", "pattern"),
        ("pattern.0.sees", "pattern.0.attention"),
        ("decoder.pattern.1.rope", "decoder.pattern.1.rope"),
        ("experts.mlp_dim", "experts.mlp_dim"),
        ("vision.norm_eps", "vision.norm_eps"),
    ],
)
def test_upgrading_a_name_is_idempotent(old, new):
    assert upgrade_name(old) == upgrade_name(upgrade_name(old)) == new


def test_old_fields_of_layer_kinds_are_upgraded():
    old = [{"sees": "all", "mlp": "dense"}, {"sees": "chunk"}, {"attention": "window"}, {}]
    new = [{"attention": "full", "mlp": "dense"}, {"attention": "chunk"}, *old[2:]]
    assert upgraded({"pattern": old})["pattern"] == new
    assert upgraded({"encoder": {"pattern": old}})["encoder"]["pattern"] == new
    assert old[0] == {"sees": "all", "mlp": "dense"}
    for other in ("x", [5], [{"sees": [1]}]):  # the validation reports these
        assert len(upgraded({"pattern": other})["pattern"]) == 1
    with pytest.raises(ValueError, match=r"given twice \(sees, attention\)"):
        upgraded({"pattern": [{"sees": "all", "attention": "full"}]})


def test_name_with_a_nested_value_is_not_an_old_name():
    assert is_moved("positions", "learned")
    assert not is_moved("positions", {"kind": "learned"})
    assert not is_moved("positions", PositionConfig())


def test_one_error_lists_all_old_names_with_their_new_ones():
    with pytest.raises(ValueError, match=r"^norm_eps is now norms\.eps; init is now init\.kind$"):
        check_moved({"norm_eps": 1e-6, "num_layers": 2, "init": "xavier", "norms.kind": "rms"})


def test_old_names_are_read_as_attributes_with_a_warning():
    for old, new in MOVED.items():
        if old not in PARTS:
            with pytest.warns(DeprecationWarning, match=f"{old} is now {new}"):
                assert getattr(TINY, old) == attrgetter(new)(TINY)
    with pytest.raises(AttributeError, match="DecoderConfig has no field 'rope_scalin'"):
        _ = TINY.rope_scalin
    assert copy.deepcopy(TINY) == pickle.loads(pickle.dumps(TINY)) == TINY
