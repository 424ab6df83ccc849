"""Framework handover: k steps in PyTorch and n in JAX match k + n in PyTorch, and vice versa."""

import copy
import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from hf_cases import randomize
from tiers import examples
from torch.distributed import checkpoint as distributed
from torch.distributed.checkpoint import state_dict
from torch_training import CLIP, RECIPE, adamw, steps

from jaxllm.cli import main
from jaxllm.interop import load_pretrained
from jaxllm.interop.formats import orbax
from jaxllm.interop.reference.tlama import model as tlama_core
from jaxllm.train import TrainConfig, load_config, read_state
from jaxllm.train.config import save_config
from jaxllm.train.data.documents import DataConfig
from jaxllm.train.mesh import MeshConfig
from jaxllm.train.monitoring.metrics import read_results
from jaxllm.train.optimizers.config import OptimizerConfig
from jaxllm.train.optimizers.schedule import make_schedule
from jaxllm.train.settings.logging import LoggingConfig
from jaxllm.train.setup import make_batches, make_run_mesh

BEFORE, AFTER = 4, 6  # steps before and after the handover
LATER = 6  # a later checkpoint, handed back to PyTorch
STEPS = BEFORE + AFTER


def llama() -> transformers.PreTrainedModel:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "head_dim": 16, "intermediate_size": 56}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    config = transformers.LlamaConfig(vocab_size=256, **sizes, **heads, attn_implementation="eager")
    return randomize(transformers.LlamaForCausalLM(config))


def gpt2() -> transformers.PreTrainedModel:
    """A model with fused projections, biases and tied weights, for every kind of rule."""
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 56, "n_positions": 64}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = transformers.GPT2Config(
        vocab_size=256, **sizes, **dropout, attn_implementation="eager"
    )
    return randomize(transformers.GPT2LMHeadModel(config))


def tlama() -> torch.nn.Module:
    """A source system with its own optimizer, whose state does not contain parameter names."""
    config = tlama_core.TlamaConfig(
        d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=256, multiple_of=8
    )
    return randomize(tlama_core.Transformer(config))


def save_tlama(model: torch.nn.Module, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.fields))
    torch.save(model.state_dict(), folder / "state_dict.pth")


def load_tlama(folder: Path) -> torch.nn.Module:
    model = tlama()
    model.load_state_dict(torch.load(folder / "state_dict.pth"))
    return model


class System(NamedTuple):
    """How a system builds, saves, loads and optimizes its models."""

    build: Callable[[], torch.nn.Module]
    final_norm: str
    form: str = "hf"
    optimizer: Callable[[torch.nn.Module], torch.optim.Optimizer] = adamw
    save: Callable[[Any, Path], None] = transformers.PreTrainedModel.save_pretrained
    load: Callable[[Path], Any] = transformers.AutoModelForCausalLM.from_pretrained


SYSTEMS = {
    "llama": System(llama, "model.norm.weight"),
    "gpt2": System(gpt2, "transformer.ln_f.weight"),
    "tlama": System(
        tlama,
        "norm.weight",
        form="tlama",
        optimizer=lambda m: m.configure_optimizers(RECIPE["weight_decay"], 3e-3),
        save=save_tlama,
        load=load_tlama,
    ),
}


class Handover(NamedTuple):
    """A PyTorch run saved after `BEFORE` steps, then continued in PyTorch and in JAX."""

    system: System
    folder: Path  # the saved PyTorch checkpoint
    run: Path  # the JAX run that continues it
    losses: list[float]  # PyTorch losses of the steps after the handover
    cold: list[float]  # the same steps with a fresh optimizer state


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    words = ["the ", "mesh ", "is ", "a ", "shape ", "of ", "devices. "]
    file.write_text("".join(random.Random(0).choices(words, k=1500)))
    return str(file)


@pytest.fixture(scope="module")
def make(text) -> Callable[..., TrainConfig]:
    def config(output: Path, model: Path, **changes: object) -> TrainConfig:
        run = TrainConfig(
            output=str(output),
            steps=STEPS,
            batch_size=8,
            seq_len=16,
            init_from=str(model),
            data=DataConfig(text=(text,), held_out=0.1),
            optimizer=OptimizerConfig(**RECIPE, warmup_steps=6, clip_norm=CLIP),
            mesh=MeshConfig(fsdp=4, tensor=2),
            save_every=2,
            keep=9,
            logging=LoggingConfig(tensorboard=False),
        )
        return dataclasses.replace(run, **changes)

    return config


def batches_and_rates(config: TrainConfig, folder: Path) -> tuple[list[dict], list[float]]:
    """The batch and the learning rate of every step of a run."""
    data = make_batches(config, load_pretrained(folder), make_run_mesh(config)).train(0)
    schedule = make_schedule(config.optimizer, config.steps)
    return [next(data) for _ in range(STEPS)], [float(schedule(step)) for step in range(STEPS)]


@pytest.fixture(scope="module", params=examples(SYSTEMS, "llama"))
def handover(request, make, tmp_path_factory) -> Handover:
    folder, system = tmp_path_factory.mktemp(request.param), SYSTEMS[request.param]
    model = system.build()
    system.save(model, folder / "saved")
    config = make(folder / "run", folder / "saved")
    save_config(config, folder / "run.yaml")
    batches, rates = batches_and_rates(config, folder / "saved")
    optimizer = system.optimizer(model)
    list(steps(model, optimizer, batches[:BEFORE], rates[:BEFORE]))
    system.save(model, folder / "saved")
    torch.save(optimizer.state_dict(), folder / "saved" / "optimizer.pt")
    twin = copy.deepcopy(model)
    cold = list(steps(twin, system.optimizer(twin), batches[BEFORE:], rates[BEFORE:]))
    losses = list(steps(model, optimizer, batches[BEFORE:], rates[BEFORE:]))
    arguments = ["--with-optimizer", "--config", str(folder / "run.yaml")]
    assert main(["convert", str(folder / "saved"), str(folder / "run"), *arguments]) == 0
    assert main(["train", str(folder / "run" / "config.yaml"), "--resume"]) == 0
    return Handover(system, folder / "saved", folder / "run", losses, cold)


def losses_of(run: Path) -> list[float]:
    """The losses of the steps after the handover."""
    rows = read_results(run / "metrics.jsonl")
    return [row["loss"] for row in rows if "loss" in row and row["step"] > BEFORE]


def relative(ours: list[float], theirs: list[float]) -> float:
    assert len(ours) == len(theirs) == AFTER
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


def test_a_pytorch_run_continues_in_jax(handover):
    assert relative(losses_of(handover.run), handover.losses) <= 1e-4
    assert relative(handover.cold, handover.losses) > 1e-2  # the optimizer state does matter


def read_all(array: Any) -> np.ndarray:
    return array.read([(0, size) for size in array.shape])


def test_the_first_checkpoint_equals_the_pytorch_state(handover):
    """Bitwise, and with layers stacked as in the JAX model."""
    saved = torch.load(handover.folder / "optimizer.pt")
    state = read_state(orbax.find_step(handover.run, BEFORE))
    assert state.step == BEFORE
    parameters = dict(handover.system.build().named_parameters())
    vectors = [name for name, parameter in parameters.items() if parameter.ndim < 2]
    number = saved["param_groups"][1]["params"][vectors.index(handover.system.final_norm)]
    for ours, theirs in ((state.mu, "exp_avg"), (state.nu, "exp_avg_sq")):
        array = saved["state"][number][theirs].numpy()
        np.testing.assert_array_equal(read_all(ours["final_norm.scale"]), array)
        assert np.abs(array).max() > 0
    assert any(":" in name for name in state.mu)


def bits_of(file: Path) -> list[tuple]:
    """Each parameter's state as bytes and its group settings, in the order of the optimizer."""
    saved = torch.load(file)
    free = ("params", "param_names", "lr")
    return [
        (
            key,
            {what: x.numpy().tobytes() for what, x in saved["state"][key].items()},
            {what: x for what, x in group.items() if what not in free},
        )
        for group in saved["param_groups"]
        for key in group["params"]
    ]


def test_converting_back_is_bitwise_exact(handover, tmp_path):
    back, form = tmp_path / "back", handover.system.form
    arguments = ["--with-optimizer", "--step", str(BEFORE), "--to", form]
    assert main(["convert", str(handover.run), str(back), *arguments]) == 0
    assert bits_of(back / "optimizer.pt") == bits_of(handover.folder / "optimizer.pt")
    a, b = (dict(handover.system.load(f).named_parameters()) for f in (handover.folder, back))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert torch.load(back / "scheduler.pt")["last_epoch"] == BEFORE


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("form", ["state_dict", "dcp"])
def test_a_jax_run_continues_in_pytorch(handover, form, tmp_path):
    """Continues from a JAX checkpoint two steps after the handover."""
    config = load_config(handover.run / "config.yaml")
    batches, rates = batches_and_rates(config, handover.folder)
    system, out = handover.system, tmp_path / "out"
    arguments = ["--with-optimizer", "--step", str(LATER), "--to", system.form]
    arguments += ["--optimizer-format", form]
    assert main(["convert", str(handover.run), str(out), *arguments]) == 0
    if form == "dcp":
        model, optimizer = loaded_from_dcp(system.build(), out)
    else:
        model = system.load(out)
        optimizer = system.optimizer(model)
        optimizer.load_state_dict(torch.load(out / "optimizer.pt"))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rates[LATER], rel=1e-6)
    theirs = list(steps(model, optimizer, batches[LATER:], rates[LATER:]))
    ours = losses_of(handover.run)[LATER - BEFORE :]
    assert max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True)) <= 1e-4


def loaded_from_dcp(model: torch.nn.Module, checkpoint: Path) -> tuple[torch.nn.Module, Any]:
    """Loads a checkpoint with `torch.distributed.checkpoint` into a model with other weights."""
    randomize(model, seed=9)
    optimizer = adamw(model, named=False)
    options = state_dict.StateDictOptions(flatten_optimizer_state_dict=True)
    weights = state_dict.get_model_state_dict(model)
    saved = {
        **weights,
        "optimizer": state_dict.get_optimizer_state_dict(model, optimizer, options=options),
    }
    distributed.load(saved, checkpoint_id=checkpoint, no_dist=True)
    state_dict.set_model_state_dict(model, {name: saved[name] for name in weights})
    state_dict.set_optimizer_state_dict(model, optimizer, saved["optimizer"], options=options)
    return model, optimizer
