"""Compares the reference with recordings of the original code, where they are available."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import relative_l2

from jaxllm.interop.reference import components, llm, nima, tlama
from jaxllm.interop.reference.components.feed_forward import FFNConfig
from jaxllm.interop.reference.llm.checkpoint import merge_shards

TOLERANCE = 1e-5  # relative L2, float32
FOLDER = Path(__file__).parents[3].parent / "shared" / "golden"
LLMS = ("llama3_mp2", "llama4", "llama4_mp2", "tiny_llama")
COMPONENTS = {
    "comp_armoe": components.AutoregressiveTransformerModel,
    "comp_encdec": components.EncoderDecoder,
    "comp_reg": components.TransformerModel,
}
NAMES = (*LLMS, *COMPONENTS, "nima_encdec", "nima_gpt", "tlama")
GOLDENS = [name for name in NAMES if (FOLDER / name).is_dir()]
LISTED = [name for name in GOLDENS if (FOLDER / name / "keys.txt").is_file()]
# The factors of Llama 3.1, which are constants of its code and missing from `params.json`.
LLAMA3 = {"rope_scaling_factor": 8.0, "rope_high_freq_factor": 4.0}


def build(name: str) -> torch.nn.Module:
    """Builds the model of a golden's config with random weights."""
    [file] = [*(FOLDER / name).glob("config.json"), *(FOLDER / name).glob("params.json")]
    fields = json.loads(file.read_text())
    fields.pop("model_type", None)
    if name in LLMS:
        extra = LLAMA3 if name == "llama3_mp2" else {}
        return llm.LLM(llm.ModelArgs.from_json(fields | extra))
    if name in COMPONENTS:
        return COMPONENTS[name](**fields | {"ffn_config": FFNConfig(**fields["ffn_config"])})
    if name == "tlama":
        return tlama.Transformer(tlama.TlamaConfig(**fields))
    return {"nima_gpt": nima.GPTModel, "nima_encdec": nima.TransformerModel}[name](**fields)


def load(name: str) -> torch.nn.Module:
    """Loads a golden's model; every stored tensor must be used."""
    model = build(name)
    shards = [torch.load(file, weights_only=True) for file in sorted((FOLDER / name).glob("*.pth"))]
    state_dict = merge_shards(shards, model.args) if len(shards) > 1 else shards[0]
    model.load_state_dict(state_dict)
    return model.eval()


def outputs(name: str, model: torch.nn.Module, io: dict) -> dict[str, torch.Tensor]:
    """Runs the model on the recorded inputs; outputs by the names of the recorded ones."""
    if name in LLMS:
        return {"logits": model(llm.TransformerInput(io["tokens"], 0), inference=True).logits}
    if name in COMPONENTS:
        inputs = [io[key] for key in ("x", "src", "tgt") if key in io]
        return {"y": model(*inputs)}
    if name == "tlama":
        logits, loss = model(io["tokens"], 0, io["targets"])
        return {"logits": logits, "loss": loss[None]}
    if name == "nima_gpt":
        padded = model(io["tokens"], io["attention_mask"])
        return {"logits": model(io["tokens"]), "logits_padded": padded}
    return {"logits": model(io["src"], io["tgt"])}


if GOLDENS:

    @pytest.mark.parametrize("name", GOLDENS)
    def test_outputs_match_the_recording(name):
        model, io = load(name), load_file(FOLDER / name / "io.safetensors")
        with torch.no_grad():
            found = outputs(name, model, io)
        recorded = {key for key in io if key.startswith(("logits", "loss"))} or {"y"}
        assert found.keys() == recorded
        for key, value in found.items():
            assert relative_l2(value, io[key]) <= TOLERANCE, key

    @pytest.mark.parametrize("name", LISTED)
    def test_names_shapes_and_dtypes_match_the_recording(name):
        lines = (FOLDER / name / "keys.txt").read_text().splitlines()[1:]
        listed = {tuple(re.split("  +", line)) for line in lines}
        tensors = build(name).state_dict().items()
        assert {(key, str(list(x.shape)), str(x.dtype)) for key, x in tensors} == listed

    @pytest.mark.parametrize("name", GOLDENS)
    def test_derived_buffers_match_the_recording(name):
        fresh, stored = dict(build(name).named_buffers()), dict(load(name).named_buffers())
        for key, value in fresh.items():
            torch.testing.assert_close(value, stored[key], rtol=0, atol=1e-5)


if "tlama" in GOLDENS:

    def test_gradients_match_the_recording():
        model, io = load("tlama"), load_file(FOLDER / "tlama" / "io.safetensors")
        model(io["tokens"], 0, io["targets"])[1].backward()
        recorded = {key.removeprefix("grad."): io[key] for key in io if key.startswith("grad.")}
        assert len(recorded) > 3
        for key, value in recorded.items():
            assert relative_l2(model.get_parameter(key).grad, value) <= TOLERANCE, key


if "comp_armoe" in GOLDENS:

    def test_overflowing_experts_match_the_recording():
        """Compares the output only: the recorded loss is not the documents' (facts.md)."""
        model, io = load("comp_armoe"), load_file(FOLDER / "comp_armoe" / "io.safetensors")
        with torch.no_grad():
            out, _ = model.layers[0].ffn(io["moe_in"])
        assert relative_l2(out, io["moe_out"]) <= TOLERANCE
