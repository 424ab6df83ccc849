"""Metric logging: exact records, resume after a kill, TensorBoard and W&B."""

import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxllm.errors import UserError
from jaxllm.train.monitoring.metrics import MetricLog, read_metrics


@given(st.lists(st.floats(allow_nan=False), max_size=5))
def test_numbers_are_read_back_exactly(tmp_path_factory, losses):
    folder = tmp_path_factory.mktemp("run")
    with MetricLog(folder) as log:
        for step, loss in enumerate(losses):
            log.write(step, {"loss": loss})
    found = [record["loss"] for record in read_metrics(folder / "metrics.jsonl")]
    assert list(map(repr, found)) == list(map(repr, losses))


def test_arrays_become_numbers_and_integers_stay_integers(tmp_path):
    with MetricLog(tmp_path) as log:
        log.write(3, {"loss": np.float32(0.1), "tokens": 512, "norm": np.array(2.0)})
        log.write(4, {"loss": math.nan})
    first, second = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert first == '{"step": 3, "loss": 0.10000000149011612, "tokens": 512, "norm": 2.0}'
    assert math.isnan(json.loads(second)["loss"])


def test_every_line_is_flushed_immediately(tmp_path):
    with MetricLog(tmp_path) as log:
        log.write(1, {"loss": 2.0})
        assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.0}]


def write_run(folder, steps, **options):
    with MetricLog(folder, **options) as log:
        for step in steps:
            log.write(step, {"loss": 1 / (step + 3)})
            if step % 4 == 0:
                log.write(step, {"held_out_loss": step / 7})


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 40))
def test_a_resumed_run_writes_the_same_file_as_an_uninterrupted_one(
    tmp_path_factory, saved, more, torn
):
    straight, resumed = (tmp_path_factory.mktemp("run") for _ in range(2))
    write_run(straight, range(20))
    write_run(resumed, range(saved + more + 1))
    with (resumed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "loss": 0.1234567890123456'[:torn])
    write_run(resumed, range(saved + 1, 20), resume_at=saved)
    assert (resumed / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
    assert [file.name for file in resumed.iterdir()] == ["metrics.jsonl"]


def test_a_new_run_moves_an_existing_file_aside(tmp_path):
    write_run(tmp_path, range(3))
    old = (tmp_path / "metrics.jsonl").read_text()
    write_run(tmp_path, range(1))
    write_run(tmp_path / "elsewhere", range(1), resume_at=5)
    assert (tmp_path / "metrics.old.1.jsonl").read_text() == old
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"loss": 1}', "", "[" * 100_000])
def test_an_invalid_line_is_reported(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: expected a JSON object"):
        read_metrics(path)


@pytest.mark.parametrize(
    ("line", "problems"),
    [
        ('{"step": "x"}', ['step is "x", not a whole number']),
        ('{"step": 1.5}', ["step is 1.5, not a whole number"]),
        ('{"step": 2, "loss": "x"}', ['loss is "x", not a number']),
        (
            '{"step": true, "loss": null}',
            ["step is true, not a whole number", "loss is null, not a number"],
        ),
    ],
)
def test_values_that_are_no_numbers_are_reported(tmp_path, line, problems):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "loss": NaN}}\n{line}\n')
    with pytest.raises(UserError) as error:
        read_metrics(path)
    assert str(error.value).splitlines() == [f"{path}, line 2: {problem}" for problem in problems]


def test_tensorboard_is_written_only_on_request(tmp_path):
    pytest.importorskip("tensorboardX")
    write_run(tmp_path / "plain", range(2))
    write_run(tmp_path / "asked", range(2), tensorboard=True)
    assert not (tmp_path / "plain" / "tensorboard").exists()
    (events,) = (tmp_path / "asked" / "tensorboard").iterdir()
    assert b"held_out_loss" in events.read_bytes()


def test_wandb_resumes_the_same_run_and_starts_a_new_one_for_a_new_run(tmp_path, monkeypatch):
    runs, logged = [], []

    def init(**options):
        runs.append(options)
        return SimpleNamespace(
            log=logged.append,
            finish=lambda: logged.append("finished"),
            define_metric=lambda *_, **__: None,
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    write_run(tmp_path, [0], wandb="project")
    write_run(tmp_path, [1], wandb="project", resume_at=0)
    write_run(tmp_path, [1], wandb="project")
    assert logged[1] == {"step": 0, "held_out_loss": 0.0}
    assert logged.count("finished") == 3
    assert {run["project"] for run in runs} == {"project"}
    first, second, third = (run["id"] for run in runs)
    assert first == second != third


@pytest.mark.parametrize(
    ("options", "extra"), [({"tensorboard": True}, "tensorboard"), ({"wandb": "p"}, "wandb")]
)
def test_a_missing_logging_package_is_reported(tmp_path, monkeypatch, options, extra):
    for module in ("tensorboardX", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'jaxllm\[{extra}\]'"):
        MetricLog(tmp_path, **options)
