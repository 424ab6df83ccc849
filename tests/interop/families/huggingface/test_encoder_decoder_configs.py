"""Released configs of encoder-decoders are read; unsupported values are refused."""

import dataclasses

import pytest
from encoder_decoder_cases import CASES
from tiny import random_model, random_of

from jaxllm.config import DecoderConfig, EncoderDecoderConfig, make_config, with_fields
from jaxllm.interop import save_pretrained
from jaxllm.interop.families import FAMILIES
from jaxllm.interop.formats.stored_tensor import CheckpointError

BY_NAME = {family.name: family for family in FAMILIES}
# As transformers 4 and the authors wrote them.
T5_SMALL = {
    "architectures": ["T5WithLMHeadModel"],
    "d_ff": 2048,
    "d_kv": 64,
    "d_model": 512,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "n_positions": 512,
    "num_heads": 8,
    "num_layers": 6,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_num_buckets": 32,
    "task_specific_params": {"summarization": {"num_beams": 4}},
    "vocab_size": 32128,
}
FLAN_T5_SMALL = {
    **{k: v for k, v in T5_SMALL.items() if k not in ("task_specific_params", "n_positions")},
    "architectures": ["T5ForConditionalGeneration"],
    "d_ff": 1024,
    "feed_forward_proj": "gated-gelu",
    "num_decoder_layers": 8,
    "num_heads": 6,
    "num_layers": 8,
    "tie_word_embeddings": False,
    "transformers_version": "4.23.1",
}
BART_LARGE_CNN = {
    "_num_labels": 3,
    "activation_dropout": 0.0,
    "activation_function": "gelu",
    "add_final_layer_norm": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "classif_dropout": 0.0,
    "d_model": 1024,
    "decoder_attention_heads": 16,
    "decoder_ffn_dim": 4096,
    "decoder_layers": 12,
    "decoder_start_token_id": 2,
    "early_stopping": True,
    "encoder_attention_heads": 16,
    "encoder_ffn_dim": 4096,
    "encoder_layers": 12,
    "force_bos_token_to_be_generated": True,
    "init_std": 0.02,
    "is_encoder_decoder": True,
    "length_penalty": 2.0,
    "max_length": 142,
    "max_position_embeddings": 1024,
    "min_length": 56,
    "model_type": "bart",
    "no_repeat_ngram_size": 3,
    "normalize_before": False,
    "num_beams": 4,
    "num_hidden_layers": 12,
    "output_past": True,
    "prefix": " ",
    "scale_embedding": False,
    "task_specific_params": {"summarization": {"num_beams": 4}},
    "vocab_size": 50264,
}


def read(family: str, json: dict, *stored: str) -> EncoderDecoderConfig:
    """Reads a config file of a checkpoint with tensors of these names."""
    fields = BY_NAME[family].fields(json)
    values, _ = BY_NAME[family].read_config(fields, dict.fromkeys(stored))
    assert fields.finish() == []
    return make_config(values)


def problems_of(family: str, json: dict) -> list[str]:
    fields = BY_NAME[family].fields(json)
    BY_NAME[family].read_config(fields, {})
    return fields.finish()


def test_the_original_t5_has_a_tied_head_and_scaled_logits():
    config = read("t5", T5_SMALL)
    decoder = config.decoder
    assert (decoder.head.tied, decoder.head.scale) == (True, 512**-0.5)
    assert (decoder.mlp.activation, decoder.mlp.gated, decoder.head_dim) == ("relu", False, 64)
    assert (config.start_token, config.encoder.num_layers, decoder.num_layers) == (0, 6, 6)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        # The same model as written by transformers 5.
        {"tie_word_embeddings": True, "scale_decoder_outputs": False, "dense_act_fn": "gelu_new"},
    ],
)
def test_flan_t5_has_a_separate_head(changes):
    config = read("t5", FLAN_T5_SMALL | changes, "lm_head.weight")
    decoder = config.decoder
    assert (decoder.head.tied, decoder.head.scale) == (False, 1.0)
    assert (decoder.mlp.activation, decoder.mlp.gated, decoder.num_layers) == ("gelu_tanh", True, 8)
    assert BY_NAME["t5"].write_config(config, {})["tie_word_embeddings"] is False


def test_a_released_bart_config_is_read():
    config = read("bart", BART_LARGE_CNN, "model.shared.weight", "final_logits_bias")
    encoder, decoder = config.encoder, config.decoder
    assert (encoder.norms.placement, encoder.positions.offset, encoder.max_len) == ("post", 2, 1024)
    assert (decoder.head.bias, decoder.head.tied, config.start_token) == (True, True, 2)
    assert (encoder.mlp.activation, encoder.embed_scale, encoder.norms.final) == (
        "gelu",
        1.0,
        False,
    )


@pytest.mark.parametrize(
    ("family", "changes", "problem"),
    [
        ("t5", {"is_encoder_decoder": False}, "is_encoder_decoder=False is not supported"),
        ("t5", {"feed_forward_proj": "gated-mish"}, "feed_forward_proj='gated-mish'"),
        ("t5", {"is_causal": False}, "is_causal=False is not implemented"),
        ("bart", {"activation_function": "mish"}, "activation_function='mish'"),
    ],
)
def test_unsupported_values_are_refused(family, changes, problem):
    json = CASES[family].arguments | changes
    [found] = problems_of(family, json)
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("family", "stack", "changes", "problem"),
    [
        ("t5", "decoder", {"head.bias": True}, "head.bias=True"),
        ("t5", "decoder", {"head.scale": 0.5}, "head.scale=0.5"),
        ("t5", "encoder", {"mlp_dim": 60}, "mlp_dim=60 in the encoder and 56 in the decoder"),
        (
            "t5",
            "encoder",
            {"attention.scale": None},
            "attention.scale=None in the encoder and 1.0 in the decoder",
        ),
        (
            "t5",
            "encoder",
            {"attention.qkv_bias": True},
            "the encoder of model_type 't5' does not support attention.qkv_bias=True",
        ),
        ("bart", "encoder", {"norms.final": True}, "norms.final=True in the encoder"),
        ("bart", "decoder", {"norms.placement": "pre"}, "norms.placement='pre' in the decoder"),
        ("bart", "encoder", {"positions.offset": 0}, "positions.offset=0 in the encoder"),
        ("bart", "encoder", {"num_kv_heads": 2}, "num_heads=6 with head_dim=8 and num_kv_heads=2"),
    ],
)
def test_configs_that_a_format_does_not_support_are_refused(family, stack, changes, problem):
    config = read(family, CASES[family].arguments)
    changed = with_fields(getattr(config, stack), changes)
    with pytest.raises(ValueError, match="does not support") as error:
        BY_NAME[family].write_config(dataclasses.replace(config, **{stack: changed}), {})
    assert problem in str(error.value)


def test_decoder_and_encoder_decoder_formats_do_not_mix(tmp_path):
    with pytest.raises(CheckpointError) as error:
        save_pretrained(
            random_of(read("t5", CASES["t5"].arguments)), tmp_path / "meta", format="meta"
        )
    assert f"this family supports {DecoderConfig.__name__}" in str(error.value)
    save_pretrained(
        random_model(), tmp_path / "hf", format="hf"
    )  # written as llama, whatever family comes first
