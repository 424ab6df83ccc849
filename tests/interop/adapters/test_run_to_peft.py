"""LoRA on a mesh, killed and resumed, exported to PEFT, loaded there, merged, and generating."""

import dataclasses
import json

import jax
import numpy as np
import peft
import pytest
import torch
from adapter_cases import SIZES, TOKENS, draw, logits_of, open_base, our_logits
from transformers import AutoModelForCausalLM, LlamaConfig

from jaxllm.interop import CheckpointError, load_pretrained
from jaxllm.interop.adapters.merging import load_adapter
from jaxllm.interop.adapters.run_to_peft import run_to_peft
from jaxllm.interop.conversion.convert import convert
from jaxllm.lora.config import LoraConfig
from jaxllm.params import named_parameters
from jaxllm.train import TrainConfig, make_mesh, train
from jaxllm.train.checkpoint import Checkpoints
from jaxllm.train.config import ConfigError
from jaxllm.train.data.documents import DataConfig
from jaxllm.train.mesh import MeshConfig
from jaxllm.train.optimizers.config import OptimizerConfig

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "while", "wizards"]


class KilledError(Exception):
    """In place of a kill: nothing after it runs."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base of bytes, and its text."""
    place = tmp_path_factory.mktemp("lora")
    sizes = {**SIZES, "vocab_size": 259, "num_hidden_layers": 2}
    draw(model := AutoModelForCausalLM.from_config(LlamaConfig(**sizes)), seed=0)
    model.save_pretrained(place / "base")
    rng = np.random.default_rng(0)
    lines = (json.dumps({"text": " ".join(rng.choice(WORDS, 60))}) for _ in range(60))
    (place / "text.jsonl").write_text("\n".join(lines))
    return place


def run_of(folder, name: str, mesh: MeshConfig) -> TrainConfig:
    return TrainConfig(
        output=str(folder / name),
        steps=4,
        batch_size=8,
        seq_len=16,
        init_from=str(folder / "base"),
        data=DataConfig(text=(str(folder / "text.jsonl"),), tokenizer="bytes"),
        mesh=mesh,
        save_every=2,
        eval_every=4,
        optimizer=OptimizerConfig(
            learning_rate=0.01,
            lora=LoraConfig(
                rank=4,
                dropout=0.1,
                targets=("q_proj", "down_proj"),
                full=("lm_head",),
                base_dtype="bfloat16",
            ),
        ),
        dtype="float32",
    )


def base_of(config: TrainConfig, path=None):
    mesh = make_mesh(**config.mesh.sizes)
    return load_pretrained(path or config.init_from, mesh=mesh, dtype="bfloat16")


def arrays(model) -> dict[str, np.ndarray]:
    return {name: np.asarray(v.get_value()) for name, v in named_parameters(model).items()}


def test_a_killed_run_goes_on_and_ends_in_peft(folder, monkeypatch):
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    whole = train(whole_run := run_of(folder, "whole", mesh), base_of(whole_run))
    run = run_of(folder, "killed", mesh)
    save = Checkpoints.save

    def save_and_die(self, *args):
        save(self, *args)
        self.wait()
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", save_and_die)
        with pytest.raises(KilledError):
            train(run, base_of(run))
    steps = [path.name for path in (folder / "killed/checkpoints").iterdir()]
    assert steps == ["2"]
    resumed = train(run, base_of(run), resume=True)
    expected = arrays(whole.model)
    for name, found in arrays(resumed.model).items():
        np.testing.assert_array_equal(found, expected[name], err_msg=name)
    stored = folder / "killed/checkpoints/4/model"
    size = sum(file.stat().st_size for file in stored.rglob("*") if file.is_file())
    trained = [x for name, x in expected.items() if x.dtype == np.float32]
    assert size < 2 * sum(x.nbytes for x in trained) + 20_000  # no frozen parameter is in it

    with pytest.raises(CheckpointError, match="not a whole model"):
        load_pretrained(folder / "killed")
    run_to_peft(folder / "killed", folder / "adapter")
    base = AutoModelForCausalLM.from_pretrained(
        folder / "base", dtype=torch.bfloat16, attn_implementation="eager"
    ).float()
    theirs = peft.PeftModel.from_pretrained(base, folder / "adapter").eval()
    ours = load_adapter(folder / "killed", dtype=None)
    rounded = load_adapter(folder / "adapter")
    assert np.abs(our_logits(ours) - our_logits(rounded)).max() == 0
    found = logits_of(theirs)
    whole_logits = np.asarray(jax.jit(lambda model: model(TOKENS)[0])(whole.model))
    assert np.abs(found - whole_logits).max() < 1e-5

    convert(folder / "killed", folder / "merged", merge=True)
    convert(folder / "adapter", folder / "merged too", merge=True)
    merged, again = (open_base(folder / name) for name in ("merged", "merged too"))
    for one, other in zip(merged.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    prompt = torch.tensor([[72, 101, 108, 108, 111]])
    own = peft.PeftModel.from_pretrained(open_base(folder / "base"), folder / "adapter").eval()
    greedy = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(merged.generate(prompt, **greedy), own.generate(input_ids=prompt, **greedy))


@pytest.mark.exhaustive
def test_another_base_or_mesh(folder):
    """The base's digest tells another one; the mesh may change."""
    run = run_of(folder, "moved", MeshConfig(data=4, fsdp=2))
    first = train(dataclasses.replace(run, steps=4), base_of(run))
    moved = dataclasses.replace(run, mesh=MeshConfig(fsdp=2, tensor=2, data=2))
    again = train(moved, base_of(moved), resume_from=2)
    for name, found in arrays(again.model).items():
        np.testing.assert_allclose(found, arrays(first.model)[name], atol=2e-4, err_msg=name)
    draw(other := open_base(folder / "base"), seed=5)
    other.save_pretrained(folder / "other")
    with pytest.raises(ConfigError, match="are not those that the adapter was trained on"):
        train(run, base_of(run, folder / "other"), resume=True)
    with pytest.raises(CheckpointError, match="the base is not the one that"):
        convert(folder / "moved", folder / "none", merge=folder / "other")
