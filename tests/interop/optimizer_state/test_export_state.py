"""Moments of any family are converted like its weights, in both directions."""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_cases import CASES
from safetensors.torch import load_file
from tiny import random_model
from torch.distributed import checkpoint as distributed

from jaxllm.interop import (
    CheckpointError,
    OptimizerExport,
    convert,
    load_pretrained,
    load_training_state,
    save_pretrained,
)
from jaxllm.optimizer_state import AdamWState
from jaxllm.params import named_parameters

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

OPTIONS = {"betas": (0.9, 0.95), "eps": 1e-8, "amsgrad": False, "maximize": False}


def state_like(weights: dict[str, torch.Tensor], decay: float = 0.1) -> dict[str, Any]:
    """A named state in one group, whose moments are two and four times the weights."""
    state = {
        name: {"step": torch.tensor(3.0), "exp_avg": 2 * x, "exp_avg_sq": 4 * x}
        for name, x in weights.items()
    }
    group = {"params": list(weights), "lr": 1e-3, "weight_decay": decay, **OPTIONS}
    return {"state": state, "param_groups": [group]}


def check(model: Any, state: AdamWState) -> None:
    weights = {name: np.asarray(v.get_value()) for name, v in named_parameters(model).items()}
    assert weights.keys() == state.mu.keys() == state.nu.keys() == state.weight_decay.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(state.mu[name], 2 * array)
        np.testing.assert_array_equal(state.nu[name], 4 * array)


FAMILIES = ["phi3", "gpt_neox", "mixtral", "gemma2", "llama4_text"]


@pytest.mark.parametrize("case", FAMILIES)
def test_moments_are_converted_like_the_weights(case, tmp_path):
    """Fused projections, separate experts, layers of several kinds; then exported in both forms."""
    theirs, native = tmp_path / "theirs", tmp_path / "native"
    CASES[case].build().save_pretrained(theirs)
    convert(theirs, native, to="native")  # its export has the same tensor names as any other
    convert(native, tmp_path / "plain")
    weights = load_file(tmp_path / "plain" / "model.safetensors")
    torch.save(state_like(weights), tmp_path / "plain" / "optimizer.pt")
    model, state = load_training_state(tmp_path / "plain")
    check(model, state)
    exported = dataclasses.replace(state, learning_rate=2e-3)
    convert(native, tmp_path / "dcp", optimizer=OptimizerExport(exported, "dcp"))
    convert(native, tmp_path / "dict", optimizer=OptimizerExport(exported, order=list(weights)))
    for form in ("dcp", "dict"):
        again, found = load_training_state(tmp_path / form)
        check(again, found)
        assert (found.step, found.learning_rate, found.b2) == (3, 2e-3, 0.95)
        assert found.weight_decay == state.weight_decay


@pytest.fixture
def titan(tmp_path) -> Path:
    """Weights with Meta's names and their moments in a DCP folder, as torchtitan writes them."""
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


def test_a_torchtitan_folder_is_loaded(titan):
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        load_training_state(titan)
    config = titan.parent / "meta" / "params.json"
    (titan / "params.json").write_bytes(config.read_bytes())
    model, state = load_training_state(titan)
    check(model, state)
    whole = {n: np.asarray(v.get_value()) for n, v in named_parameters(model).items()}
    for name, variable in named_parameters(load_pretrained(titan.parent / "meta")).items():
        np.testing.assert_array_equal(whole[name], variable.get_value())
    assert set(state.weight_decay.values()) == {0.1}


def test_an_optimizer_alone_in_a_dcp_folder_is_loaded(tmp_path):
    save_pretrained(random_model(head_dim=8), tmp_path / "hf")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    distributed.save({"optim": state_like(weights)}, checkpoint_id=tmp_path / "o", no_dist=True)
    check(*load_training_state(tmp_path / "hf", optimizer=tmp_path / "o"))
    with pytest.raises(CheckpointError, match="neither a file nor a DCP folder"):
        load_training_state(tmp_path / "hf", optimizer=tmp_path / "hf")


def test_optimizers_of_model_parallel_shards_are_refused(tmp_path):
    save_pretrained(random_model(head_dim=8), tmp_path / "meta", format="meta", model_parallel=2)
    torch.save(state_like({"norm.weight": torch.ones(3)}), tmp_path / "meta" / "optimizer.pt")
    with pytest.raises(CheckpointError, match="optimizers of model-parallel checkpoints"):
        load_training_state(tmp_path / "meta")


def state_of(model: Any, **changes: object) -> AdamWState:
    arrays = {name: v.get_value() for name, v in named_parameters(model).items()}
    state = AdamWState(
        step=3,
        mu=arrays,
        nu=arrays,
        learning_rate=1e-3,
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        weight_decay=dict.fromkeys(arrays, 0.1),
    )
    return dataclasses.replace(state, **changes)


def test_an_export_needs_the_order_of_the_parameters(tmp_path):
    """PyTorch loads a state dict by number only, so the model's order is needed."""
    model = random_model(head_dim=8)
    save_pretrained(model, tmp_path / "native", format="native")
    state = state_of(model)
    with pytest.raises(
        CheckpointError, match="the order of the parameters of meta-llama is unknown"
    ):
        convert(tmp_path / "native", tmp_path / "o", to="meta", optimizer=OptimizerExport(state))
    wrong = OptimizerExport(state, order=["norm.weight"])
    with pytest.raises(CheckpointError, match=r"name different parameters: layers\.0\.attention\."):
        convert(tmp_path / "native", tmp_path / "o", to="meta", optimizer=wrong)
    with pytest.raises(CheckpointError, match="a native run already holds its optimizer state"):
        convert(tmp_path / "native", tmp_path / "o", to="native", optimizer=wrong)
    with pytest.raises(
        CheckpointError, match=r"embedding is bfloat16, but resuming a run needs float32"
    ):
        convert(
            tmp_path / "native", tmp_path / "o", dtype="bfloat16", optimizer=OptimizerExport(state)
        )
    assert [file.name for file in tmp_path.iterdir()] == ["native"]


def test_a_killed_export_resumes(tmp_path):
    """Moments are units of a resumable conversion, like weights."""
    model = random_model(head_dim=8)
    save_pretrained(model, tmp_path / "native", format="native")
    optimizer = OptimizerExport(state_of(model))
    convert(tmp_path / "native", tmp_path / "whole", optimizer=optimizer)

    def kill(done: int, total: int) -> None:
        if done == total:
            raise OSError("killed")

    begin = partial(convert, tmp_path / "native", tmp_path / "out", optimizer=optimizer)
    with pytest.raises(OSError, match="killed"):
        begin(progress=kill, workers=1)
    done = begin()
    # All but the last unit is kept; the weights are a third of the bytes.
    assert 0.8 * done.num_bytes < done.num_bytes_kept < done.num_bytes
    files = {file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()}
    assert files.keys() >= {"model.safetensors", "optimizer.pt", "scheduler.pt"}
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == files
    assert json.loads(files["config.json"])["model_type"] == "llama"
