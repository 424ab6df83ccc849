"""Qwen3-Next: logits equal those of transformers; weights and config survive the round trip."""

import shutil

import pytest
import torch
from decoder_family import DecoderFamily
from hf_case import DELTA, Case, stored
from safetensors.torch import load_file, save_file

from jaxllm.interop import CheckpointError, load_pretrained, save_pretrained

EXPERTS = {
    **{"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 40},
    "shared_expert_intermediate_size": 24,
}

CASES = {
    # transformers' own float32 is 1.07e-5 from its float64; ours is 5.0e-6 from it.
    "qwen3_next": Case("Qwen3Next", {**DELTA, **EXPERTS}, in_float64=True),
    "qwen3_next/some-dense-attention-first-biases-tied": Case(
        "Qwen3Next",
        {
            **DELTA,
            **EXPERTS,
            "linear_conv_kernel_dim": 2,
            "linear_num_value_heads": 3,
            "mlp_only_layers": [1],
            "norm_topk_prob": False,
            "layer_types": ["full_attention", *["linear_attention"] * 3],
            "attention_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": {
                **{"rope_type": "linear", "rope_theta": 20000.0, "factor": 2.0},
                "partial_rotary_factor": 0.5,
            },
        },
    ),
}


class TestQwen3Next(DecoderFamily):
    cases = CASES


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A folder with a layer that predicts further tokens, as released."""
    folder = tmp_path_factory.mktemp("released")
    CASES["qwen3_next"].build().save_pretrained(folder)
    file = folder / "model.safetensors"
    extra = {"mtp.fc.weight": torch.rand(48, 96), "mtp.layers.0.mlp.gate.weight": torch.rand(5, 48)}
    save_file({**load_file(file), **extra}, file, {"format": "pt"})
    return folder


def test_layers_that_predict_further_tokens_are_carried_along(released, tmp_path):
    save_pretrained(load_pretrained(released), tmp_path / "out")
    assert stored(tmp_path / "out") == stored(released)


def test_layers_of_an_unknown_type_are_refused(released, tmp_path):
    shutil.copytree(released, tmp_path / "other")
    file = tmp_path / "other" / "config.json"
    file.write_text(file.read_text().replace('"full_attention"', '"sliding_attention"'))
    with pytest.raises(CheckpointError, match="sliding_attention; allowed are linear_attention"):
        load_pretrained(tmp_path / "other")
