"""The list of runs: their states, by lock, step and loss."""

import dataclasses
import json
import math

import pytest
from tiny import TINY

from jaxllm.errors import MissingFileError
from jaxllm.train import TrainConfig
from jaxllm.train.config import save_config
from jaxllm.train.monitoring.metrics import MetricLog
from jaxllm.train.monitoring.run_list import list_runs
from jaxllm.train.restarts import folder_lock

RUN = TrainConfig(output="x", steps=4, batch_size=2, seq_len=4, model=TINY)


def logged(folder, losses):
    folder.mkdir(parents=True)
    save_config(dataclasses.replace(RUN, output=str(folder)), folder / "config.yaml")
    with MetricLog(folder) as log:
        for step, loss in enumerate(losses, start=1):
            log.write(step, {"loss": loss})
            log.write(step, {"held_out_loss": 2 * loss})


def test_states_follow_from_lock_step_and_loss(tmp_path):
    logged(tmp_path / "done", [4.0, 3.0, 2.0, 1.0])
    logged(tmp_path / "deep" / "cut", [4.0, 3.0])
    logged(tmp_path / "broken", [4.0, math.nan])
    logged(tmp_path / "new", [])
    logged(tmp_path / "busy", [4.0])
    with folder_lock.locked(tmp_path / "busy"):
        found = {run.name: run for run in list_runs(tmp_path)}
        assert found["busy"].state == "running"
    states = {name: run.state for name, run in found.items()}
    assert states == {
        "done": "finished",
        "deep/cut": "stopped",
        "broken": "failed",
        "new": "stopped",
        "busy": "running",
    }
    assert (found["done"].step, found["done"].steps, found["done"].loss) == (4, 4, 1.0)
    assert found["done"].held_out_loss == 2.0
    assert json.loads(json.dumps(found["broken"].to_json()))["loss"] is None
    assert found["new"].loss is None


def test_damaged_runs_are_listed_with_what_is_wrong(tmp_path):
    logged(tmp_path / "config", [4.0, 3.0])
    (tmp_path / "config" / "config.yaml").write_text("output: [")
    logged(tmp_path / "log", [4.0, 3.0])
    (tmp_path / "log" / "metrics.jsonl").write_text("half a line\n")
    logged(tmp_path / "sound", [4.0, 3.0])
    found = {run.name: run for run in list_runs(tmp_path)}
    states = {name: (run.state, run.step, run.steps, run.loss) for name, run in found.items()}
    assert states == {
        "config": ("damaged", 0, None, None),
        "log": ("damaged", 0, 4, None),
        "sound": ("stopped", 2, 4, 3.0),
    }
    assert f"{tmp_path / 'config' / 'config.yaml'}: invalid YAML" in found["config"].problem
    assert f"{tmp_path / 'log' / 'metrics.jsonl'}, line 1: " in found["log"].problem
    assert found["sound"].problem is None


def test_a_folder_may_be_a_run_itself_or_missing(tmp_path):
    logged(tmp_path / "run", [4.0])
    assert [run.name for run in list_runs(tmp_path / "run")] == ["run"]
    with pytest.raises(MissingFileError, match="nowhere is not a folder"):
        list_runs("nowhere")
