"""Logging of a run: the order of its records, and what is left after an error."""

import dataclasses
import math

import jax.numpy as jnp
import pytest
from tiny import TINY

from jaxllm.errors import NonFiniteError
from jaxllm.train import TrainConfig, load_config
from jaxllm.train.monitoring import run_logger
from jaxllm.train.monitoring.metrics import read_metrics, read_results
from jaxllm.train.monitoring.run_logger import RunLogger
from jaxllm.train.settings.logging import LoggingConfig
from jaxllm.train.speed import stopwatch
from jaxllm.train.speed.stopwatch import Rate

RUN = TrainConfig(
    output="run",
    steps=3,
    batch_size=2,
    seq_len=4,
    model=TINY,
    logging=LoggingConfig(every=1, tensorboard=False),
)
RATE = Rate(tokens_per_step=8, flops_per_step=1e9, num_devices=2, peak_flops=1e12)


def metrics(loss: float) -> dict:
    return {"loss": jnp.float32(loss), "grad_norm": jnp.float32(1)}


def test_records_are_in_order_and_the_same_lines_are_printed(tmp_path, capsys):
    """A step is written when the next one is added, the held-out loss after its own step."""
    with RunLogger(RUN, tmp_path, None, "nats per token", RATE) as logger:
        logger.held_out(0, 5.0)
        logger.add(1, metrics(4.0))
        assert [row["step"] for row in read_results(tmp_path / "metrics.jsonl")] == [0]
        logger.add(2, metrics(3.0))
        with logger.paused("evaluation"):
            assert [row["step"] for row in read_results(tmp_path / "metrics.jsonl")] == [0, 1, 2]
        logger.held_out(2, 2.5)
        logger.held_out(2, None)
    rows = [(row["step"], *row.keys()) for row in read_results(tmp_path / "metrics.jsonl")]
    assert rows == [
        (0, "step", "held_out_loss"),
        (1, "step", "loss", "grad_norm"),
        (2, "step", "loss", "grad_norm"),
        (2, "step", "held_out_loss"),
    ]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[:2] for line in lines] == [
        ["step 0/3", "held-out loss 5.0000"],
        ["step 1/3", "loss 4.0000"],
        ["step 2/3", "loss 3.0000"],
        ["step 2/3", "held-out loss 2.5000"],
    ]
    assert load_config(tmp_path / "config.yaml") == RUN
    assert (tmp_path / "loss.png").exists()


def test_a_loss_that_is_not_finite_is_written_and_raised(tmp_path):
    with RunLogger(RUN, tmp_path, None, "nats per token", RATE) as logger:
        logger.add(1, metrics(math.nan))
        with pytest.raises(NonFiniteError, match="step 1 has non-finite metrics and is not saved"):
            logger.flush()
    assert math.isnan(read_metrics(tmp_path / "metrics.jsonl")[0]["loss"])


def test_speed_is_a_record_of_its_own_and_counts_each_part(tmp_path, monkeypatch):
    now = 100.0
    for module in (run_logger, stopwatch):
        monkeypatch.setattr(module, "monotonic", lambda: now)
    config = dataclasses.replace(RUN, steps=5, logging=LoggingConfig(every=2, tensorboard=False))
    with RunLogger(config, tmp_path, None, "nats per token", RATE) as logger:
        for step in range(1, 6):
            with logger.waiting_for_data():
                now += 1  # the step before is computed at once here, so the devices wait
            now += 3
            logger.add(step, metrics(1.0))
            if step == 3:
                with logger.paused("checkpoint"):
                    now += 50
    speeds = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "speed/step_s" in row]
    assert [row["step"] for row in speeds] == [2, 4]  # the last is flushed by the loop
    first, second = speeds
    # Step 1 is not counted: it was compiled.
    assert (first["speed/step_s"], first["speed/data_wait_s"]) == (4, 1)
    assert first["speed/compute_s"] == 3
    assert first["speed/tokens_per_s"] == 2
    assert first["speed/tflops_per_device"] == pytest.approx(1e9 / 4 / 2 / 1e12)
    assert first["speed/mfu"] == pytest.approx(1e9 / 4 / 2 / 1e12)
    assert (second["speed/step_s"], second["speed/checkpoint_s"]) == (4, 50)
    assert second["speed/goodput"] == pytest.approx(3 * 3 / (5 * 4 + 50))
    assert read_results(tmp_path / "metrics.jsonl")[-1].keys() == {"step", "loss", "grad_norm"}
