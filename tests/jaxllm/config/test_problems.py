"""Corrections of field names exist in the class that they are given for; errors are one line."""

import pytest
from kinds import CONFIGS
from tiny import TINY

from jaxllm.config import EncoderDecoderConfig, from_dict, to_dict
from jaxllm.config.problems import find_correction


@pytest.mark.parametrize(
    ("kind", "name", "correction"),
    [
        ("decoder", "norm_eps", "is now norms.eps"),
        ("decoder", "norms.norm_eps", "is now norms.eps"),
        ("decoder", "rope.rope_theta", "is now rope.theta"),
        ("decoder", "rope_scaling.factor", "is now rope.scaling.factor"),
        ("decoder", "positions", "is now positions.kind"),
        ("decoder", "attention.window", None),
        ("decoder", "positions.waves", None),
        ("decoder", "norms.nothing", None),
        ("decoder", "num_layers", None),
        ("decoder", "pattern.0.sees", "is now pattern.0.attention"),
        ("decoder", "pattern.0.mlp", None),
        ("decoder", "encoder.norm_eps", "does not exist: set norms.eps"),
        ("pooled", "tie_embeddings", None),
        (
            "encoder-decoder",
            "norm_eps",
            "does not exist: set encoder.norms.eps or decoder.norms.eps",
        ),
        (
            "encoder-decoder",
            "num_layers",
            "does not exist: set encoder.num_layers or decoder.num_layers",
        ),
        ("encoder-decoder", "tie_embeddings", "does not exist: set decoder.head.tied"),
        ("encoder-decoder", "encoder.tie_embeddings", "does not exist: set decoder.head.tied"),
        ("encoder-decoder", "decoder.tie_embeddings", "is now decoder.head.tied"),
        ("encoder-decoder", "encoder.pattern.1.sees", "is now encoder.pattern.1.attention"),
        ("encoder-decoder", "encoder.norms.norm_eps", "is now encoder.norms.eps"),
    ],
)
def test_a_correction_exists_in_the_class(kind, name, correction):
    config = {"decoder": TINY, **CONFIGS}[kind]
    assert find_correction(type(config), name) == correction


def test_a_group_of_fields_is_no_old_name():
    assert find_correction(type(TINY), "positions", {"kind": "rope"}) is None
    assert (
        find_correction(EncoderDecoderConfig, "positions", {"kind": "rope"})
        == "does not exist: set encoder.positions or decoder.positions"
    )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"num_layer": 3}, "unknown field 'num_layer'; did you mean 'num_layers'?"),
        ({"embed_dim": "wide"}, "embed_dim='wide': input should be a valid integer"),
        ({"norms": {"epss": 1.0}}, "unknown field 'norms.epss'; did you mean 'eps'?"),
        ({"norms": {"norm_eps": 1.0}}, "norms.norm_eps is now norms.eps"),
        ({"norms": {"eps": float("nan")}}, "norms: norms.eps=nan is not a finite number"),
    ],
)
def test_a_problem_is_explained_in_one_line(changes, line):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is examined below
        from_dict(to_dict(TINY) | changes)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)
