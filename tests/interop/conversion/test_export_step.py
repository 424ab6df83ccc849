"""Exports of a step of a run: the merged model and the adapter of LoRA, and plain models."""

import json

import numpy as np
import peft
import pytest
import torch
from adapter_cases import SIZES, draw
from transformers import AutoModelForCausalLM, LlamaConfig

from jaxllm.interop import export_step, load_pretrained
from jaxllm.lora.config import LoraConfig
from jaxllm.train import TrainConfig, make_mesh, train
from jaxllm.train.data.documents import DataConfig
from jaxllm.train.mesh import MeshConfig
from jaxllm.train.optimizers.config import OptimizerConfig
from jaxllm.train.settings.export import ExportConfig
from jaxllm.train.settings.logging import LoggingConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with LoRA of 3 steps, which exports the adapter as it trains."""
    place = tmp_path_factory.mktemp("exports")
    sizes = {**SIZES, "vocab_size": 259, "num_hidden_layers": 1}
    draw(model := AutoModelForCausalLM.from_config(LlamaConfig(**sizes)), seed=0)
    model.save_pretrained(place / "base")
    lines = (json.dumps({"text": f"{i} squared is {i * i}"}) for i in range(60))
    (place / "text.jsonl").write_text("\n".join(lines))
    config = TrainConfig(
        output=str(place / "run"),
        steps=3,
        batch_size=8,
        seq_len=16,
        init_from=str(place / "base"),
        data=DataConfig(text=(str(place / "text.jsonl"),), tokenizer="bytes", held_out=0),
        mesh=MeshConfig(data=8),
        optimizer=OptimizerConfig(learning_rate=0.05, lora=LoraConfig(rank=4)),
        logging=LoggingConfig(tensorboard=False),
        export=ExportConfig(every=2),
    )
    base = load_pretrained(place / "base", mesh=make_mesh(data=8))
    train(config, base, export=export_step)
    return place


def logits_of(model) -> np.ndarray:
    with torch.no_grad():
        return model(torch.arange(20)[None]).logits.numpy()


def theirs(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def test_the_adapter_and_the_merged_model_compute_the_same(folder):
    assert sorted(path.name for path in (folder / "run" / "exports").iterdir()) == ["2", "3"]
    export_step(folder / "run", folder / "merged", step=2, dtype="float32")
    found = {}
    for step in ("2", "3"):
        place = folder / "run" / "exports" / step
        found[step] = logits_of(peft.PeftModel.from_pretrained(theirs(folder / "base"), place))
    assert np.abs(found["2"] - logits_of(theirs(folder / "merged"))).max() < 1e-5
    assert np.abs(found["3"] - found["2"]).max() > 1e-3
    assert np.abs(found["2"] - logits_of(theirs(folder / "base"))).max() > 1e-3
