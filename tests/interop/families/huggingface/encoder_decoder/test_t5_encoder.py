"""T5's encoder alone is a family of its own; `test_without_head.py` compares its numbers."""

import json

import numpy as np
import pytest
import transformers
from hf_case import randomize

from jaxllm.config import DecoderConfig, RelativeBuckets, make_config
from jaxllm.interop import load_pretrained
from jaxllm.interop.families import Layout
from jaxllm.interop.families.huggingface.encoder_decoder.t5_encoder import T5_ENCODER

SIZES = {"vocab_size": 96, "d_model": 48, "d_kv": 16, "d_ff": 56, "num_layers": 1, "num_heads": 6}


def test_it_reads_the_config_of_a_whole_t5(tmp_path):
    """Text encoders of image models keep the config of the model that they were cut from."""
    original = randomize(transformers.T5EncoderModel(transformers.T5Config(**SIZES)))
    original.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    model = load_pretrained(tmp_path)
    whole = {**config, "is_encoder_decoder": True, "architectures": ["T5ForConditionalGeneration"]}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    again = load_pretrained(tmp_path)
    assert again.config == model.config
    assert again.origin.family == "t5_encoder"
    tokens = np.arange(30)[None]
    np.testing.assert_array_equal(again(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"attention.causal": True}, "attention.causal=True"),
        ({"attention.scale": None}, "attention.scale=None"),
        ({"num_kv_heads": 1}, "num_kv_heads=1"),
        ({"norms.kind": "layer"}, "norms.kind='layer'"),
    ],
)
def test_it_refuses_what_t5_cannot_express(change, problem):
    fields = {"embed_dim": 48, "num_layers": 1, "num_heads": 6, "num_kv_heads": 6, "head_dim": 16}
    kind = {
        "positions.kind": "relative",
        "positions.relative": RelativeBuckets(count=32, max_distance=128),
    }
    fixed = {"attention.scale": 1.0, "attention.causal": False, "head.kind": "none"}
    config = make_config({**fields, "mlp_dim": 56, "vocab_size": 96, **kind, **fixed})
    assert isinstance(config, DecoderConfig)
    assert T5_ENCODER.write_config(config, {})["architectures"] == ["T5EncoderModel"]
    assert T5_ENCODER.table(config, Layout()).sizes["U"] == 32
    changed = make_config({**fields, "mlp_dim": 56, "vocab_size": 96, **kind, **fixed, **change})
    with pytest.raises(ValueError, match=problem):
        T5_ENCODER.write_config(changed, {})
