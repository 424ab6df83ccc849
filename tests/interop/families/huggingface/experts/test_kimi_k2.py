"""Kimi-K2: its files are read as those of DeepSeek-V3, and come back as they were."""

import json

import numpy as np
import pytest
import torch
from hf_case import DEEPSEEK, DEEPSEEK_YARN, Case, stored, tokens_of
from tiny import relative_l2

from jaxllm.interop import CheckpointError, load_pretrained, save_pretrained

OWN = {
    "model_type": "kimi_k2",
    "auto_map": {
        "AutoConfig": "configuration_deepseek.DeepseekV3Config",
        "AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM",
    },
    **{"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1},
    **{"aux_loss_alpha": 0.001, "seq_aux": True, "num_nextn_predict_layers": 0},
}


@pytest.fixture(scope="module")
def kimi(tmp_path_factory):
    """A folder as released, and the DeepSeek-V3 that computes it."""
    folder = tmp_path_factory.mktemp("kimi")
    one_group = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
    case = Case("DeepseekV3", {**DEEPSEEK, **DEEPSEEK_YARN, **one_group}, without=("head_dim",))
    original = case.build()
    original.save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **OWN}))
    return folder, original


def test_it_is_the_deepseek_v3_of_these_weights(kimi):
    folder, original = kimi
    tokens = tokens_of(original)[:, :100]
    with torch.no_grad():
        expected = original(input_ids=torch.tensor(tokens), use_cache=False).logits.numpy()
    assert relative_l2(load_pretrained(folder)(tokens).logits, expected) <= 1e-5


def test_what_is_written_back_says_what_the_original_said(kimi, tmp_path):
    folder, _ = kimi
    model = load_pretrained(folder)
    assert model.origin.family == "kimi_k2"
    save_pretrained(model, tmp_path / "out")
    assert stored(tmp_path / "out") == stored(folder)
    written, original = (
        json.loads((place / "config.json").read_text()) for place in (tmp_path / "out", folder)
    )
    assert written == original


def test_without_its_origin_it_is_a_deepseek_v3_for_transformers(kimi, tmp_path):
    folder, original = kimi
    model = load_pretrained(folder)
    model.origin = None
    save_pretrained(model, tmp_path / "out", format="hf")
    again = type(original).from_pretrained(tmp_path / "out", attn_implementation="eager")
    assert again.config.model_type == "deepseek_v3"
    tokens = torch.tensor(tokens_of(original)[:1, :50])
    with torch.no_grad():
        found, expected = (m(input_ids=tokens).logits.numpy() for m in (again.eval(), original))
    np.testing.assert_array_equal(found, expected)


def test_another_way_to_choose_experts_is_refused(kimi, tmp_path):
    folder, _ = kimi
    fields = json.loads((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**fields, "scoring_func": "softmax"}))
    with pytest.raises(CheckpointError, match="scoring_func='softmax' is not supported"):
        load_pretrained(tmp_path)
