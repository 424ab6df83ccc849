"""The components' EncoderDecoder beside the reference: every attention, and experts."""

import dataclasses

import pytest
from components_family import CROWDED, DENSE, LAYERS, MESHES, ComponentsFamily

from jaxllm.config import SequenceToSequenceConfig, make_config, with_fields
from jaxllm.interop.families.common.fields import Fields
from jaxllm.interop.families.source_systems.components_encoder_decoder import (
    read_config,
    write_config,
)

TYPE = "components-encoder-decoder"
DEPTHS = {"num_encoder_layers": 3, "num_decoder_layers": 2}
SIZES = {**LAYERS, **DEPTHS}
SWITCHES = {
    "mqa": {"attention_type": "mqa", "ffn_config": {**DENSE, "use_moe": False}},
    "one-group": {"attention_type": "gqa", "num_groups": 1, "apply_causal_mask": True},
    "two-experts-full": CROWDED,
}
VARIANTS = {f"{TYPE}/{name}": {**SIZES, **own} for name, own in SWITCHES.items()}


class TestEncoderDecoder(ComponentsFamily):
    cases = VARIANTS
    lengths = (160, 150)
    sizes = DEPTHS

    # The families of one stack have a quick one.
    @pytest.mark.exhaustive
    @pytest.mark.usefixtures("really_compiling")
    @pytest.mark.parametrize("axes", MESHES, ids=str)
    def test_on_a_mesh_and_layer_by_layer_it_computes_the_same(self, axes, crowded):
        super().test_on_a_mesh_and_layer_by_layer_it_computes_the_same(axes, crowded)


def read(**fields: object) -> SequenceToSequenceConfig:
    given = Fields({"model_type": TYPE, **SIZES, **fields})
    values, _ = read_config(given, {})
    assert given.finish() == []
    return make_config(values)


@pytest.mark.parametrize("is_causal", [True, False])
def test_the_mask_is_the_decoder_s(is_causal):
    config = read(apply_causal_mask=is_causal)
    assert config.decoder.attention.causal == is_causal
    assert not config.encoder.attention.causal
    assert write_config(config, {})["apply_causal_mask"] == is_causal


def test_source_and_target_are_vectors_of_one_size():
    config = read(input_dim=7)
    assert (config.source_dim, config.decoder.input_dim, config.decoder.output_dim) == (7, 7, 5)
    assert (config.encoder.num_layers, config.decoder.num_layers) == (3, 2)
    with pytest.raises(ValueError, match="source_dim=4 with input_dim=7"):
        write_config(dataclasses.replace(config, source_dim=4), {})


@pytest.mark.parametrize(
    ("stack", "changes", "words"),
    [
        ("encoder", {"mlp_dim": 60}, "mlp_dim=60 in the encoder and 56"),
        ("decoder", {"norms.eps": 1e-6}, r"norms\.eps"),
        ("encoder", {"num_kv_heads": 3}, "num_kv_heads=3 in the encoder and 6"),
        ("decoder", {"attention.window": 9}, r"attention\.window=9"),
    ],
    ids=str,
)
def test_what_the_arguments_cannot_say_is_refused(stack, changes, words):
    config, pattern = read(), {}
    if "attention.window" in changes:
        pattern = {"pattern": (dataclasses.replace(config.decoder.pattern[0], attention="window"),)}
    changed = with_fields(getattr(config, stack), {**changes, **pattern})
    with pytest.raises(ValueError, match=words):
        write_config(dataclasses.replace(config, **{stack: changed}), {})
