"""Training on from an adapter: its settings, what differs, and changing frameworks mid-way."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
from adapter_cases import SIZES, VOCABULARY, draw, make_adapter, open_base
from flax import nnx
from safetensors.numpy import load_file
from tiers import examples
from tiny import relative_l2
from transformers import AutoModelForCausalLM, LlamaConfig

from jaxllm.cli import main
from jaxllm.errors import UserError
from jaxllm.interop.adapters.adapter import Adapter
from jaxllm.interop.adapters.continuing import load_start
from jaxllm.interop.adapters.merging import load_adapter, open_adapter
from jaxllm.interop.adapters.peft_config import PREFIX
from jaxllm.interop.adapters.peft_writing import write_adapter
from jaxllm.lora.config import LoraConfig
from jaxllm.lora.given import base_of
from jaxllm.train import ConfigError, TrainConfig, make_mesh
from jaxllm.train.data import PreferencesConfig
from jaxllm.train.finetuning.start import init_state, model_to_train, starting_weights
from jaxllm.train.optimizers.config import OptimizerConfig
from jaxllm.train.step import make_steps

STEPS, RATE = 20, 0.01
BATCHES = np.random.default_rng(1).integers(1, VOCABULARY, (STEPS, 2, 10))


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (
            "llama",
            LoraConfig(
                rank=4,
                alpha=6.0,
                rslora=True,
                targets=("layers.*.attn.q_proj", "layers.*.mlp.down_proj"),
            ),
        ),
        (
            "norms and head in full",
            LoraConfig(
                rank=4,
                alpha=6.0,
                targets=("layers.*.attn.o_proj",),
                full=("embed", "layers.*.attn_norm", "lm_head"),
            ),
        ),
    ],
)
def test_the_settings_are_those_of_the_adapter(case, expected, tmp_path):
    make_adapter(case, tmp_path, lora_dropout=0.25)
    model, found = load_start(tmp_path / "adapter", None)
    assert found == dataclasses.replace(expected, dropout=0.25)
    assert load_start(tmp_path / "adapter", found)[1] == found
    other = dataclasses.replace(found, rank=2, full=("final_norm",))
    with pytest.raises(UserError, match=r"rank=2, but it has 4\n.*scale by"):
        load_start(tmp_path / "adapter", other)
    with pytest.raises(UserError, match=r"lora\.full matches final_norm"):
        load_start(tmp_path / "adapter", dataclasses.replace(found, full=("final_norm",)))
    assert model.origin.checkpoint == str(tmp_path / "base")


def test_several_ranks_are_refused(tmp_path):
    make_adapter("llama", tmp_path, rank_pattern={"q_proj": 2})
    with pytest.raises(UserError, match=r"the ranks 2, 4 and the scales"):
        load_start(tmp_path / "adapter", None)


def config_of(lora: LoraConfig, **changes) -> TrainConfig:
    settings = {
        "output": "unused",
        "steps": STEPS,
        "batch_size": 2,
        "seq_len": 9,
        "init_from": "adapter",
        "optimizer": OptimizerConfig(
            learning_rate=RATE, decay="constant", weight_decay=0.01, clip_norm=0.5, lora=lora
        ),
    }
    return TrainConfig(**{**settings, **changes})


def test_a_run_without_the_settings_or_with_preferences_is_refused(tmp_path):
    make_adapter("llama", tmp_path)
    model, lora = load_start(tmp_path / "adapter", None)
    config = config_of(lora)
    plain = dataclasses.replace(config, optimizer=OptimizerConfig())
    with pytest.raises(
        ConfigError, match=r"the model has an adapter, but optimizer\.lora is not set"
    ):
        model_to_train(plain, model)
    other = config_of(dataclasses.replace(lora, rank=8))
    with pytest.raises(ConfigError, match="rank=8, but it has 4"):
        model_to_train(other, model)
    pairs = dataclasses.replace(config, data=PreferencesConfig(preferences=("pairs.jsonl",)))
    with pytest.raises(ConfigError, match="compared with the base without its adapter"):
        model_to_train(pairs, model)


class Ours:
    """A run in jaxllm from an adapter, whose steps are taken one by one."""

    def __init__(self, folder: Path):
        self.model, self.lora = load_start(folder, None)
        config = config_of(self.lora)
        mesh = make_mesh(devices=jax.devices()[:1])
        with jax.set_mesh(mesh):
            model = model_to_train(config, self.model)
            self.steps = make_steps(config, model, mesh)
            self.state = init_state(self.steps, starting_weights(config, model, mesh))

    def take(self, batches) -> list[float]:
        losses = []
        for tokens in batches:
            batch = {"tokens": tokens, "mask": np.ones((2, 9), np.int32)}
            self.state, metrics = self.steps.train(self.state, batch)
            losses.append(float(metrics["loss"]))
        return losses

    def named(self, tree) -> dict[str, np.ndarray]:
        flat = nnx.traversals.flatten_mapping(tree).items()
        return {".".join(map(str, path)): np.asarray(x) for path, x in flat}

    def write(self, tree, folder: Path) -> Path:
        """Writes the factors, or moments like them, as PEFT has them."""
        names = {name.removesuffix(".lora.a") for name in self.named(tree) if name.endswith(".a")}
        adapter = Adapter(
            scales=dict.fromkeys(names, self.lora.scale),
            arrays=self.named(tree),
            rslora=self.lora.rslora,
        )
        write_adapter(adapter, base_of(self.model), folder)
        return folder


def optimizer_of(model, folders: dict[str, Path], taken: int) -> torch.optim.AdamW:
    """PyTorch's AdamW, with the moments in these folders, if there are any."""
    trained = {name: x for name, x in model.named_parameters() if x.requires_grad}
    groups = [
        {"params": [x for x in trained.values() if x.ndim > 1], "weight_decay": 0.01},
        {"params": [x for x in trained.values() if x.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=1e-8)
    moments = {
        name: load_file(place / "adapter_model.safetensors") for name, place in folders.items()
    }
    for name, parameter in trained.items() if moments else ():
        stored = name.replace(".default", "").replace(".modules_to_save", "")
        assert stored.startswith(PREFIX)
        optimizer.state[parameter] = {
            "step": torch.tensor(float(taken)),
            **{field: torch.tensor(found[stored]) for field, found in moments.items()},
        }
    return optimizer


def take_theirs(model, optimizer, batches) -> list[float]:
    trained = [x for x in model.parameters() if x.requires_grad]
    losses = []
    for tokens in torch.tensor(batches):
        logits = model(tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.5)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("case", examples(["llama", "norms and head in full"], "llama"))
@pytest.mark.parametrize("moments", [True, False])
def test_a_run_changes_frameworks_mid_way(case, moments, tmp_path):
    """10 steps in jaxllm, then 10 in PEFT on PyTorch: those that jaxllm takes when it goes on."""
    make_adapter(case, tmp_path)
    ours = Ours(tmp_path / "adapter")
    half = STEPS // 2
    first = ours.take(BATCHES[:half])
    exported = ours.write(ours.state.params, tmp_path / "exported")
    text = exported / "adapter_config.json"
    named = json.loads(text.read_text()) | {"base_model_name_or_path": str(tmp_path / "base")}
    text.write_text(json.dumps(named))
    folders = {}
    if moments:
        for field, tree in (("exp_avg", "mu"), ("exp_avg_sq", "nu")):
            own = optax.tree.get(ours.state.optimizer, tree)
            folders[field] = ours.write(own, tmp_path / tree)
    else:  # both begin with new moments, ours by `init_from`
        ours = Ours(exported)
    theirs = peft.PeftModel.from_pretrained(
        open_base(tmp_path / "base"), exported, is_trainable=True
    ).eval()
    expected = take_theirs(theirs, optimizer_of(theirs, folders, half), BATCHES[half:])
    found = ours.take(BATCHES[half:])
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    assert abs(first[0] - found[-1]) > 0.01
    theirs.save_pretrained(tmp_path / "trained")
    after = open_adapter(tmp_path / "trained", base_of(ours.model)).arrays
    before = open_adapter(exported, base_of(ours.model)).arrays
    parameters = ours.named(ours.state.params)
    assert after.keys() == parameters.keys()
    for name, x in parameters.items():
        assert relative_l2(x, after[name]) < 1e-4, name
        assert relative_l2(x, before[name]) > 1e-3, name


@pytest.mark.exhaustive
def test_the_command_trains_an_adapter_on_and_resumes(tmp_path, monkeypatch, capsys):
    """Its export names the base of the adapter, and holds what PEFT computes with it."""
    monkeypatch.chdir(tmp_path)
    sizes = {**SIZES, "vocab_size": 256, "num_hidden_layers": 1}
    draw(base := AutoModelForCausalLM.from_config(LlamaConfig(**sizes)), seed=0)
    base.save_pretrained("base")
    options = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj"])
    model = peft.get_peft_model(open_base(tmp_path / "base"), options)
    draw(model, seed=1, trained=True)
    model.save_pretrained("adapter")
    text = Path("adapter/adapter_config.json")
    named = json.loads(text.read_text()) | {"base_model_name_or_path": str(tmp_path / "base")}
    text.write_text(json.dumps(named))
    Path("text.txt").write_text("to be or not to be, that is the question. " * 60)
    run = {"output": "run", "init_from": "adapter", "steps": 4, "batch_size": 8, "seq_len": 16}
    run |= {"data": {"text": ["text.txt"], "tokenizer": "bytes", "held_out": 0}}
    run |= {"mesh": {"data": 8}, "save_every": 2, "logging": {"tensorboard": False}}
    Path("run.yaml").write_text(json.dumps({**run, "optimizer": {"learning_rate": 0.01}}))
    assert main(["train", "run.yaml"]) == 0
    assert main(["train", "run.yaml", "--output", "again", "--steps", "4"]) == 0
    assert main(["train", "run/config.yaml", "--output", "again", "--resume-from", "2"]) == 0
    assert main(["diff", "run", "again"]) == 0
    assert main(["convert", "run", "exported", "--to", "peft"]) == 0
    found = json.loads(Path("exported/adapter_config.json").read_text())
    assert found["base_model_name_or_path"] == str(tmp_path / "base")
    assert (found["r"], found["lora_alpha"]) == (2, 3)
    theirs = peft.PeftModel.from_pretrained(open_base(tmp_path / "base"), "exported").eval()
    tokens = np.arange(1, 30)[None]
    ours = load_adapter("run")
    logits = np.asarray(jax.jit(lambda model: model(jnp.asarray(tokens))[0])(ours))
    with torch.no_grad():
        assert np.abs(theirs(torch.tensor(tokens)).logits.numpy() - logits).max() < 1e-5
    capsys.readouterr()
    assert main(["train", "run.yaml", "--output", "new", "--optimizer.lora.rank", "8"]) == 2
    assert "optimizer.lora.rank=8, but it has 2" in capsys.readouterr().err
