"""DeepSeek-V3: logits equal those of transformers; weights and config survive the round trip."""

import shutil

import numpy as np
import pytest
import torch
from decoder_family import DecoderFamily
from hf_case import DEEPSEEK, DEEPSEEK_YARN, Case, stored
from safetensors.torch import load_file, save_file

from jaxllm.interop import CheckpointError, load_pretrained, save_pretrained

CASES = {
    "deepseek_v3": Case(
        "DeepseekV3",
        {**DEEPSEEK, **DEEPSEEK_YARN, "first_k_dense_replace": 1},
        without=("head_dim",),
    ),
    "deepseek_v3/one-group-no-query-latent-halves-biases-tied": Case(
        "DeepseekV3",
        {
            **DEEPSEEK,
            "q_lora_rank": None,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 2,
            "routed_scaling_factor": 1.3,
            "norm_topk_prob": False,
            "first_k_dense_replace": 2,
            "rope_interleave": False,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
        without=("head_dim",),
    ),
    # Without experts it is a DeepSeek-V2 as well.
    "deepseek_v3/dense": Case(
        "DeepseekV3",
        {**DEEPSEEK, "first_k_dense_replace": 5},
        without=("head_dim",),
        written_as="deepseek_v2",
    ),
}


class TestDeepseekV3(DecoderFamily):
    cases = CASES


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A folder with a checkpoint in bfloat16 that has a layer to predict further tokens.

    The corrections are float32, as released.
    """
    folder = tmp_path_factory.mktemp("released")
    CASES["deepseek_v3"].build().save_pretrained(folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    wide = "e_score_correction_bias"
    tensors = {name: x if name.endswith(wide) else x.bfloat16() for name, x in tensors.items()}
    last = {name: x for name, x in tensors.items() if name.startswith("model.layers.3.")}
    extra = {name.replace("layers.3.", "layers.4."): 2 * x for name, x in last.items()}
    for name, shape in {"eh_proj": (48, 96), "enorm": (48,), "hnorm": (48,)}.items():
        extra[f"model.layers.4.{name}.weight"] = torch.rand(shape).bfloat16()
    save_file({**tensors, **extra}, file, {"format": "pt"})
    return folder


def test_layers_that_predict_further_tokens_are_carried_along(released, tmp_path):
    model = load_pretrained(released)
    save_pretrained(model, tmp_path / "out")
    assert stored(tmp_path / "out") == stored(released)
    again = load_pretrained(tmp_path / "out", dtype="float32")
    tokens = np.arange(40)[None]
    expected = load_pretrained(released, dtype="float32")(tokens).logits
    np.testing.assert_array_equal(again(tokens).logits, expected)


def test_another_layer_beyond_the_last_is_refused(released, tmp_path):
    """One that does not predict tokens is a wrong number of layers."""
    shutil.copytree(released, tmp_path / "more")
    file = tmp_path / "more" / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("model.layers.4.eh_proj.weight")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.4\."):
        load_pretrained(tmp_path / "more")
