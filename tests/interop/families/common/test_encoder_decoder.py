"""Fields of two stacks that a format does not support are refused, with the stack named."""

import dataclasses

import pytest
from kinds import CONFIGS

from jaxllm.config import EncoderDecoderConfig, PositionConfig, with_fields
from jaxllm.interop.families.common.encoder_decoder import refuse_both

CONFIG = CONFIGS["encoder-decoder"]


def changed(stack: str, **changes: object) -> EncoderDecoderConfig:
    """The config with fields of one stack changed; in their names, `__` is a dot."""
    fields = {name.replace("__", "."): value for name, value in changes.items()}
    return dataclasses.replace(CONFIG, **{stack: with_fields(getattr(CONFIG, stack), fields)})


def test_what_makes_one_the_encoder_needs_no_saying():
    """One of them is causal and attends to the other, whatever the format."""
    refuse_both("a format", CONFIG)


@pytest.mark.parametrize(
    "changes", [{"dropout": 0.1}, {"init__std": 0.5}, {"scan_layers": False}, {"remat": "full"}]
)
def test_how_a_stack_is_run_may_differ(changes):
    refuse_both("a format", changed("encoder", **changes))


def test_a_field_that_the_format_has_not_is_named_with_its_stack():
    both = with_fields(CONFIG, {"attention.qkv_bias": True})
    with pytest.raises(
        ValueError, match=r"the encoder of a format does not .*attention\.qkv_bias=True"
    ):
        refuse_both("a format", both)
    refuse_both("a format", both, "attention.qkv_bias")


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_stacks_that_differ_are_refused_with_both_values(stack):
    values = {"encoder": "99 in the encoder and 56", "decoder": "56 in the encoder and 99"}
    config = changed(stack, mlp_dim=99)
    with pytest.raises(ValueError, match=f"a format .*mlp_dim={values[stack]} in the decoder"):
        refuse_both("a format", config)
    refuse_both("a format", config, may_differ=["mlp_dim"])


def test_the_decoder_alone_has_a_head():
    config = changed("decoder", head__bias=True)
    with pytest.raises(ValueError, match=r"head\.bias=True"):
        refuse_both("a format", config)
    refuse_both("a format", config, decoder=["head.bias"])


def test_positions_are_shared_only_if_the_format_says_each():
    learned, none = (PositionConfig(kind=kind) for kind in ("learned", "none"))
    config = dataclasses.replace(
        CONFIG,
        encoder=dataclasses.replace(CONFIG.encoder, positions=none),
        decoder=dataclasses.replace(CONFIG.decoder, positions=learned),
        share_positions=True,
    )
    with pytest.raises(ValueError, match="share_positions=True"):
        refuse_both("a format", config, "positions.kind")
    refuse_both("a format", config, "positions.kind", may_differ=["positions.kind"])


def test_everything_else_it_cannot_say_is_refused_with_the_differences():
    config = changed("decoder", mlp_dim=99)
    with pytest.raises(
        ValueError, match="mlp_dim=56 in the encoder and 99 in the decoder; start"
    ) as error:
        refuse_both("a format", config, unsupported={"start_token=3": True, "no_such_thing": False})
    assert "no_such_thing" not in str(error.value)
