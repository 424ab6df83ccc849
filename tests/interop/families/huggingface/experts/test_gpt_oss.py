"""gpt-oss: logits equal those of transformers; weights and config survive the round trip.

Experts in MXFP4, the released storage, are decoded to the bits of transformers.
"""

import dataclasses
import json
import logging

import pytest
import torch
import transformers
from decoder_family import TOLERANCE, DecoderFamily, logits_of
from hf_case import Case, rope, stored, tokens_of
from safetensors.torch import load_file, save_file
from tiny import relative_l2

from jaxllm.interop import load_pretrained, save_pretrained

EXPERTS = {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 70}

CASES = {
    "gpt_oss": Case("GptOss", EXPERTS),
    "gpt_oss/irregular-tied-unscaled": Case(
        "GptOss",
        {
            **EXPERTS,
            **rope("default"),
            "layer_types": [
                *("full_attention", "full_attention", "sliding_attention", "full_attention"),
            ],
            "attention_bias": False,
            "tie_word_embeddings": True,
            "swiglu_limit": 0.1,
            "swiglu_alpha": 1.3,
        },
    ),
}
BLOCK = 32


class TestGptOss(DecoderFamily):
    cases = CASES


def blocks_of(shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns random blocks and scales of experts' matrices, [experts, inputs, outputs]."""
    experts, inputs, outputs = shape
    generator = torch.Generator().manual_seed(inputs + outputs)
    lead = experts, outputs, inputs // BLOCK
    packed = torch.randint(0, 256, (*lead, BLOCK // 2), generator=generator, dtype=torch.uint8)
    return packed, torch.randint(121, 127, lead, generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A folder with a checkpoint whose experts are in MXFP4, and all else in bfloat16."""
    folder = tmp_path_factory.mktemp("mxfp4")
    case = dataclasses.replace(
        CASES["gpt_oss"], changes={**EXPERTS, "hidden_size": 96, "intermediate_size": 64}
    )
    case.build().bfloat16().save_pretrained(folder)
    file = folder / "model.safetensors"
    tensors = {}
    for name, tensor in load_file(file).items():
        if name.endswith(("gate_up_proj", "down_proj")):
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = blocks_of(tensor.shape)
        else:
            tensors[name] = tensor
    save_file(tensors, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens"]
    config["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [*kept, "lm_head"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_experts_in_mxfp4_are_those_that_transformers_dequantizes(released, tmp_path, caplog):
    original = transformers.AutoModelForCausalLM.from_pretrained(
        released,
        quantization_config=transformers.Mxfp4Config(dequantize=True),
        dtype=torch.bfloat16,
        attn_implementation="eager",
    )
    with caplog.at_level(logging.WARNING):
        model = load_pretrained(released)
    assert "8 of 71 tensors are stored as mxfp4 and decoded to bfloat16" in caplog.text
    save_pretrained(model, tmp_path / "out")
    written = stored(tmp_path / "out")
    expected = original.state_dict()
    assert {*written} == {*expected}
    for name, (dtype, _, data) in written.items():
        assert dtype == torch.bfloat16, name
        other = expected[name].bfloat16().contiguous()  # transformers keeps norms in float32
        assert data == other.view(torch.uint8).numpy().tobytes(), name
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())
    wide, tokens = original.float().eval(), tokens_of(original)
    with torch.no_grad():
        expected = wide(input_ids=torch.tensor(tokens), use_cache=False).logits.numpy()
    found = logits_of(load_pretrained(released, dtype="float32"), tokens)
    assert relative_l2(found, expected) <= TOLERANCE
