"""DeepSeek-V3: logits equal those of transformers; weights and config survive the round trip."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from broken_models import arrays_of
from decoder_family import DecoderFamily
from hf_case import DEEPSEEK, DEEPSEEK_YARN, Case, stored, tokens_of
from safetensors.torch import load_file, save_file
from tiny import relative_l2
from transformers import FineGrainedFP8Config

from jaxllm.interop import CheckpointError, from_torch, load_pretrained, save_pretrained

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


def in_fp8(folder: Path) -> None:
    """Writes the projections of a checkpoint as released: in blocks of float8, with scales."""
    file, size, written = folder / "model.safetensors", 4, {}
    for name, x in load_file(file).items():
        if not re.search(r"_proj(_with_mqa)?\.weight$", name):
            written[name] = x if name.endswith("correction_bias") else x.bfloat16()
            continue
        rows, columns = (-(-n // size) for n in x.shape)
        wide = torch.zeros(rows * size, columns * size)
        wide[: x.shape[0], : x.shape[1]] = x
        blocks = wide.reshape(rows, size, columns, size)
        scale = blocks.abs().amax(dim=(1, 3)) / 448
        whole = scale.repeat_interleave(size, 0).repeat_interleave(size, 1)
        whole = whole[: x.shape[0], : x.shape[1]]
        written[name] = (x / whole).to(torch.float8_e4m3fn)
        written[f"{name}_scale_inv"] = scale
    save_file(written, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    settings = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
    settings["weight_block_size"] = [size, size]
    text = json.dumps({**config, "dtype": "bfloat16", "quantization_config": settings})
    (folder / "config.json").write_text(text)


@pytest.mark.exhaustive
def test_blocks_of_float8_are_the_model_that_transformers_decodes(tmp_path):
    """The same bits in bfloat16 from all projections, experts too, and the same logits."""
    original = CASES["deepseek_v3"].build()
    original.save_pretrained(tmp_path / "released")
    in_fp8(tmp_path / "released")
    decoded = type(original).from_pretrained(
        tmp_path / "released",
        quantization_config=FineGrainedFP8Config(dequantize=True, weight_block_size=(4, 4)),
        attn_implementation="eager",
    )
    model = load_pretrained(tmp_path / "released")
    ours, theirs = arrays_of(model), arrays_of(from_torch(decoded))
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    save_pretrained(model, tmp_path / "ours")
    tokens = tokens_of(original, batch_size=1)[:, :60]
    with torch.no_grad():
        expected = decoded.float().eval()(input_ids=torch.tensor(tokens)).logits.numpy()
    found = load_pretrained(tmp_path / "ours", dtype="float32")(tokens).logits
    assert relative_l2(found, expected) <= 1e-5
