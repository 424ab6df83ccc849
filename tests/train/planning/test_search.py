"""The search for a layout."""

import dataclasses
import math

import pytest
from planned_runs import EXPERTS, TPU, run
from tiny import TINY

from jaxllm.errors import UserError
from jaxllm.train import load_config
from jaxllm.train.planning import search as module
from jaxllm.train.planning.search import find_meshes, search


@pytest.mark.exhaustive
def test_meshes_use_all_devices_and_divide_the_batch_and_the_heads():
    meshes = find_meshes(run(batch_size=4), TPU)
    assert meshes
    for mesh in meshes:
        assert math.prod(mesh.values()) == 8
        assert 4 % (mesh["data"] * mesh["fsdp"]) == 0
        assert mesh["expert"] == 1
    assert any(mesh["expert"] > 1 for mesh in find_meshes(run(EXPERTS), TPU))


@pytest.mark.exhaustive
def test_what_fits_is_listed_the_fastest_first(monkeypatch):
    monkeypatch.setattr(module, "MOST_MESHES", 1)
    found = search(run(), TPU)
    seconds = [one.plan.step_seconds for one in found]
    assert seconds == sorted(seconds)
    assert {one.config.remat for one in found} == set(module.REMATS)
    assert "--mesh.fsdp" in found[0].options


@pytest.mark.exhaustive
def test_microbatches_are_tried_until_the_step_fits(monkeypatch):
    monkeypatch.setattr(module, "MOST_MESHES", 1)
    monkeypatch.setattr(module, "REMATS", ["full"])
    whole = search(run(batch_size=64), TPU)[0].plan
    state = whole.parameters + whole.gradients + whole.optimizer
    small = TPU._replace(device=TPU.device._replace(memory=state + whole.activations // 2))
    (found,) = search(run(batch_size=64), small)
    assert found.config.accumulate > 1
    assert found.plan.spare >= 0


def test_a_state_that_no_mesh_can_hold_is_an_error():
    tight = TPU._replace(device=TPU.device._replace(memory=1000))
    with pytest.raises(UserError, match="no mesh over v5p:2x2x2 divides batch_size=16 and holds"):
        search(run(), tight)


@pytest.mark.exhaustive
def test_the_options_are_overrides_of_the_config(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_MESHES", 1)
    best = search(run(), TPU)[0]
    (tmp_path / "run.yaml").write_text(
        "output: runs/x\nsteps: 10\nbatch_size: 16\nseq_len: 64\nmodel: {vocab_size: 96, "
        "embed_dim: 32, num_layers: 3, num_heads: 4, num_kv_heads: 2, head_dim: 16, mlp_dim: 56, "
        "max_len: 512}\n"
    )
    loaded = load_config(tmp_path / "run.yaml", best.options.split())
    assert loaded.model == TINY
    assert loaded == dataclasses.replace(best.config, data=loaded.data)
