"""BART: logits equal those of transformers; weights and config survive the round trip."""

from encoder_decoder_case import Case, inputs_of, logits_of_original
from encoder_decoder_family import TOLERANCE, EncoderDecoderFamily, logits_of
from hf_case import stored
from tiny import relative_l2

from jaxllm.interop import load_pretrained, save_pretrained

# H != D / N, and sizes that differ from each other: a mix-up of axes changes a shape.
BART = {
    "vocab_size": 96,
    "d_model": 48,
    "encoder_layers": 3,
    "decoder_layers": 4,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 56,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 512,
    "decoder_start_token_id": 7,
    "forced_eos_token_id": None,
}

CASES = {
    "bart": Case("Bart", BART),
    "bart/scaled-relu": Case(
        "Bart", BART | {"scale_embedding": True, "activation_function": "relu"}
    ),
}


class TestBart(EncoderDecoderFamily):
    cases = CASES


def test_a_bart_without_head_keeps_its_tensor_names(tmp_path):
    original = CASES["bart"].build()
    original.final_logits_bias.zero_()
    original.model.save_pretrained(tmp_path / "original")
    assert "shared.weight" in stored(tmp_path / "original")
    model, inputs = load_pretrained(tmp_path / "original"), inputs_of(original)
    expected = logits_of_original(original, inputs)[inputs.is_tgt_BT == 1]
    assert relative_l2(logits_of(model, inputs), expected) <= TOLERANCE
    save_pretrained(model, tmp_path / "out")
    assert stored(tmp_path / "out") == stored(tmp_path / "original")
