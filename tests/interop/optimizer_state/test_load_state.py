"""A run of PyTorch is taken up: the model and its moments, from every kind of folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from doubled_moments import assert_doubled, state_like
from safetensors.torch import load_file
from tiny import random_model
from torch.distributed import checkpoint as distributed

from jaxllm.interop import CheckpointError, load_pretrained, load_training_state, save_pretrained
from jaxllm.params import named_parameters
from jaxllm.train import make_mesh

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def run(tmp_path) -> tuple[Path, dict]:
    """A folder with a model and its optimizer's file, and what is in that file."""
    save_pretrained(random_model(head_dim=8), tmp_path / "run")
    state = state_like(load_file(tmp_path / "run" / "model.safetensors"))
    torch.save(state, tmp_path / "run" / "optimizer.pt")
    return tmp_path / "run", state


def test_moments_lie_as_the_weights_do(run):
    model, state = load_training_state(run[0])
    assert_doubled(model, state)
    assert (state.step, state.learning_rate, state.b1, state.b2) == (3, 1e-3, 0.9, 0.95)
    assert model.origin.family == "llama"


def test_moments_live_on_the_mesh_where_the_weights_do(run):
    model, state = load_training_state(run[0], mesh=make_mesh(fsdp=4, tensor=2))
    assert_doubled(model, state)
    for name, variable in named_parameters(model).items():
        sharding = variable.get_value().sharding
        assert sharding == state.mu[name].sharding == state.nu[name].sharding
        assert len(sharding.device_set) == 8
    assert not state.mu["embed.embedding"].sharding.is_fully_replicated


def test_weights_of_one_array_decay_alike(run):
    """Layers that are stacked here may decay each on its own there."""
    folder, state = run
    [group] = state["param_groups"]
    name = "model.layers.1.mlp.up_proj.weight"
    group["params"].remove(name)
    state["param_groups"].append({**group, "params": [name], "weight_decay": 0.0})
    torch.save(state, folder / "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"weight_decay differs .*layers\.1\.mlp\.up_proj"):
        load_training_state(folder)


def test_coarse_weights_are_refused(run):
    folder, state = run
    save_pretrained(load_pretrained(folder, dtype="bfloat16"), folder.parent / "coarse")
    torch.save(state, folder.parent / "coarse" / "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"embedding is bfloat16"):
        load_training_state(folder.parent / "coarse")


@pytest.fixture
def titan(tmp_path) -> Path:
    """Weights by Meta's names with their moments in a DCP folder, as torchtitan writes them."""
    save_pretrained(random_model(head_dim=8), tmp_path / "meta", format="meta")
    weights = torch.load(tmp_path / "meta" / "consolidated.00.pth")
    weights = {name: x for name, x in weights.items() if not name.startswith("rope")}
    state = state_like(weights)
    group = state["param_groups"][0]
    flat = {f"state.{n}.{what}": x for n, e in state["state"].items() for what, x in e.items()}
    flat |= {f"param_groups.{n}.{k}": v for n in weights for k, v in group.items() if k != "params"}
    saved = {**weights, "optimizer": flat, "train_state": {"step": torch.tensor(3)}}
    distributed.save(saved, checkpoint_id=tmp_path / "titan", no_dist=True)
    return tmp_path / "titan"


def test_a_folder_of_torchtitan(titan):
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        load_training_state(titan)
    config = titan.parent / "meta" / "params.json"
    (titan / "params.json").write_bytes(config.read_bytes())
    model, state = load_training_state(titan)
    assert_doubled(model, state)
    whole = {n: np.asarray(v.get_value()) for n, v in named_parameters(model).items()}
    for name, variable in named_parameters(load_pretrained(titan.parent / "meta")).items():
        np.testing.assert_array_equal(whole[name], variable.get_value())
    assert set(state.weight_decay.values()) == {0.1}


def test_the_optimizer_alone_in_a_dcp_folder(tmp_path):
    save_pretrained(random_model(head_dim=8), tmp_path / "hf")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    distributed.save({"optim": state_like(weights)}, checkpoint_id=tmp_path / "o", no_dist=True)
    assert_doubled(*load_training_state(tmp_path / "hf", optimizer=tmp_path / "o"))
    with pytest.raises(CheckpointError, match="neither a file nor a DCP folder"):
        load_training_state(tmp_path / "hf", optimizer=tmp_path / "hf")


def test_shards_of_which_each_has_an_optimizer_are_refused(tmp_path):
    save_pretrained(random_model(head_dim=8), tmp_path / "meta", format="meta", model_parallel=2)
    torch.save(state_like({"norm.weight": torch.ones(3)}), tmp_path / "meta" / "optimizer.pt")
    with pytest.raises(
        CheckpointError, match="optimizers of model-parallel checkpoints, one per shard"
    ):
        load_training_state(tmp_path / "meta")
