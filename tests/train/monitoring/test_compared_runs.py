"""Runs compared: a picture, and a page with curves and the settings that differ."""

import dataclasses
import math

import pytest
from tiny import TINY

from jaxllm.errors import MissingFileError, UserError
from jaxllm.train import TrainConfig
from jaxllm.train.config import save_config
from jaxllm.train.monitoring.compared_runs import compare_runs
from jaxllm.train.monitoring.metrics import MetricLog
from jaxllm.train.optimizers.config import OptimizerConfig

RUN = TrainConfig(output="x", steps=9, batch_size=2, seq_len=4, model=TINY)


def logged(folder, rate, losses):
    config = dataclasses.replace(RUN, optimizer=OptimizerConfig(learning_rate=rate))
    folder.mkdir(parents=True)
    save_config(dataclasses.replace(config, output=str(folder)), folder / "config.yaml")
    with MetricLog(folder) as log:
        for step, loss in enumerate(losses, start=1):
            log.write(step, {"loss": loss, "learning_rate": rate})
        log.write(len(losses), {"held_out_loss": 2.5, "speed/tokens_per_s": 1234.0})
    return str(folder)


def test_the_page_has_all_curves_and_what_differs(tmp_path):
    runs = [
        logged(tmp_path / "a" / "run", 1e-3, [4.0, 3.5, math.nan, 3.25]),
        logged(tmp_path / "b<i>\udcff" / "run", 2e-3, [4.0, 3.0]),
    ]
    png, page = compare_runs([*runs, runs[0]], tmp_path / "out" / "both")
    assert png.read_bytes().startswith(b"\x89PNG")
    html = page.read_text()
    assert html.count("<svg") == 4
    for text in (
        "a/run",
        "b&lt;i&gt;\\udcff/run",
        "optimizer.learning_rate",
        "0.001",
        "0.002",
        "1,234",
    ):
        assert text in html
    for title in ("Training loss", "Held-out loss", "Learning rate", "Tokens per second"):
        assert title in html
    assert "<code>output" not in html
    assert "<i>" not in html
    assert "http" not in html  # nothing is fetched


def test_folders_without_a_run_are_all_named_and_a_run_needs_a_loss(tmp_path):
    with pytest.raises(MissingFileError) as error:
        compare_runs(["no", "none"], tmp_path / "out")
    assert [line.split()[0] for line in str(error.value).splitlines()] == ["no", "none"]
    with pytest.raises(UserError, match="no loss is logged yet in new"):
        compare_runs([logged(tmp_path / "new", 1e-3, [])], tmp_path / "out")
    assert not list(tmp_path.glob("out*"))
