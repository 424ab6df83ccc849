"""T5: logits equal those of transformers; weights and config survive the round trip."""

import numpy as np
import pytest
import torch
from encoder_decoder_case import Case, inputs_of, logits_of_original
from encoder_decoder_family import EncoderDecoderFamily, logits_of
from tiny import relative_l2
from transformers import T5ForConditionalGeneration

from jaxllm.config import with_fields
from jaxllm.interop import load_pretrained
from jaxllm.models import build_abstract
from jaxllm.params import named_parameters, with_arrays

# H != D / N, and sizes that differ from each other: a mix-up of axes changes a shape.
T5 = {
    "vocab_size": 96,
    "d_model": 48,
    "d_kv": 16,
    "d_ff": 56,
    "num_layers": 4,
    "num_decoder_layers": 3,
    "num_heads": 6,
    "decoder_start_token_id": 5,
}
CASES = {
    "t5": Case("T5", T5),
    # Distances beyond the last bucket, and uneven bucket boundaries.
    "t5/few-buckets": Case(
        "T5",
        T5 | {"relative_attention_num_buckets": 12, "relative_attention_max_distance": 60},
    ),
    "t5/v1.1": Case(
        "T5", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, True
    ),
    "t5/gated-silu-tied-unscaled": Case(
        "T5", T5 | {"feed_forward_proj": "gated-silu", "tie_word_embeddings": False}
    ),
}


class TestT5(EncoderDecoderFamily):
    cases = CASES


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", ["t5", "t5/v1.1"])
def test_float16_is_finite_and_accurate_where_transformers_is(name, tmp_path):
    """As in t5-base, the feed-forward's outputs pass 65504: transformers keeps `wo` in float32."""
    original = CASES[name].build()
    with torch.no_grad():
        for block in (original.encoder.block[1], original.decoder.block[0]):
            block.layer[-1].DenseReluDense.wo.weight.mul_(40000)
    original.save_pretrained(tmp_path / "t5")
    inputs = inputs_of(original)
    is_token = inputs.is_tgt_BT == 1
    expected = logits_of_original(original, inputs)[is_token]
    half = T5ForConditionalGeneration.from_pretrained(tmp_path / "t5", dtype=torch.float16)
    theirs = logits_of_original(half.eval(), inputs)[is_token]
    assert np.isfinite(theirs).all()
    model = load_pretrained(tmp_path / "t5", dtype="float16")
    assert relative_l2(logits_of(model, inputs), expected) <= 2 * relative_l2(theirs, expected)
    without = with_fields(model.config, {"numerics.wide_residual": False})
    narrow = with_arrays(
        build_abstract(without), {n: v.get_value() for n, v in named_parameters(model).items()}
    )
    assert not np.isfinite(logits_of(narrow, inputs)).all()
