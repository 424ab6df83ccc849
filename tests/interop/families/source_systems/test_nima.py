"""The arguments of nima's layers: every switch is read and written, and nothing else."""

import pytest
from nima_switches import LAYERS, SWITCHES
from tiny import random_model

from jaxllm.config import DecoderConfig, make_config, with_fields
from jaxllm.interop import save_pretrained
from jaxllm.interop.families.common.fields import Fields
from jaxllm.interop.families.source_systems.nima import (
    layer_rules,
    read_layers,
    unsupported,
    waves,
    write_layers,
)
from jaxllm.interop.formats.stored_tensor import CheckpointError

POSITIONS = ("learned", "sinusoidal", "rope", "alibi", "relative")


def read(**switches: object) -> DecoderConfig:
    fields = Fields({**LAYERS, **switches})
    values = read_layers(fields, POSITIONS)
    assert fields.finish() == []
    return make_config({**values, "num_layers": 2, "vocab_size": 96})


def test_without_switches_it_is_the_original():
    config = read()
    assert (config.norms.kind, config.norms.placement) == ("layer", "post")
    assert (config.positions.kind, config.dropout, config.init.kind) == ("learned", 0.1, "xavier")
    assert (config.mlp.gated, config.mlp.activation) == (False, "relu")
    assert (config.num_kv_heads, config.head_dim) == (6, 8)
    assert (config.attention.qkv_bias, config.attention.out_bias, config.mlp.bias) == (True,) * 3


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_a_switch_is_written_if_it_was_given_or_is_not_usual(switches):
    config = read(**switches)
    assert write_layers(config, {}, POSITIONS) == {**LAYERS, **switches}
    assert not any(unsupported(config, POSITIONS).values())
    usual = {"norm": "post", "feed_forward": "ffn", "position": "learned", "init": "xavier"}
    assert write_layers(read(**usual), usual, POSITIONS) == {**LAYERS, **usual}


@pytest.mark.parametrize("name", ["norm", "feed_forward", "position", "init"])
def test_a_value_that_a_switch_has_not_is_named(name):
    fields = Fields({**LAYERS, name: "none"})
    read_layers(fields, POSITIONS)
    [problem] = fields.problems
    assert f"{name}='none'" in problem


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norms.kind": "rms"}, "norms.kind='rms'"),
        ({"norms.placement": "sandwich"}, "norms.placement='sandwich'"),
        ({"mlp.activation": "gelu"}, "mlp.activation='gelu'"),
        ({"attention.qkv_bias": False}, "attention.qkv_bias=False"),
        ({"num_kv_heads": 2}, "num_kv_heads=2"),
        ({"head_dim": 16}, "head_dim=16"),
        ({"positions.kind": "none"}, "positions.kind='none'"),
        ({"positions.kind": "sinusoidal", "positions.waves": "power"}, "waves='power'"),
        ({"positions.kind": "rope", "rope.layout": "half"}, "rope.layout='half'"),
    ],
    ids=str,
)
def test_what_the_arguments_cannot_say_is_named(changes, words):
    found = unsupported(with_fields(read(), changes), POSITIONS)
    assert any(words in text for text, is_so in found.items() if is_so)


def test_pairs_lie_in_any_way_where_none_is_rotated():
    config = with_fields(read(), {"rope.layout": "half"})
    assert not any(unsupported(config, POSITIONS).values())


def test_switches_have_their_tensors():
    def names(**switches: object) -> set[str]:
        return {rule.stored.name for rule in layer_rules("{L}", "layers.{L}", read(**switches))}

    assert names(feed_forward="glu") - names() == {
        f"{{L}}.feed_forward.gate.{kind}" for kind in ("weight", "bias")
    }
    assert names(position="relative") - names() == {"{L}.self_attention.relative_bias.weight"}


def test_only_sinusoids_have_a_buffer():
    assert waves(read()) == ()
    [buffer] = waves(read(position="sinusoidal"))
    assert buffer.compute().shape == (320, 1, 48)


def test_what_it_cannot_say_is_refused(tmp_path):
    with pytest.raises(CheckpointError) as error:
        save_pretrained(random_model(), tmp_path / "out", format="nima")
    assert "nima-gpt: nima's GPTModel does not support" in str(error.value)
    assert "nima-transformer: this family supports EncoderDecoderConfig" in str(error.value)
