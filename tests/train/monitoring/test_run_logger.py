"""Logging of a run: the order of its records, and what is left after an error."""

import math

import jax.numpy as jnp
import pytest
from tiny import TINY

from jaxllm.errors import NonFiniteError
from jaxllm.train import TrainConfig, load_config
from jaxllm.train.monitoring.metrics import read_metrics
from jaxllm.train.monitoring.run_logger import RunLogger

RUN = TrainConfig(
    output="run", steps=3, batch_size=2, seq_len=4, model=TINY, log_every=1, tensorboard=False
)


def metrics(loss: float) -> dict:
    return {"loss": jnp.float32(loss), "grad_norm": jnp.float32(1)}


def test_records_are_in_order_and_the_same_lines_are_printed(tmp_path, capsys):
    """A step is written when the next one is added, the held-out loss after its own step."""
    with RunLogger(RUN, tmp_path, None, "nats per token") as logger:
        logger.held_out(0, 5.0)
        logger.add(1, metrics(4.0))
        assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0]
        logger.add(2, metrics(3.0))
        with logger.paused():
            assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1, 2]
        logger.held_out(2, 2.5)
        logger.held_out(2, None)
    rows = [(row["step"], *row.keys()) for row in read_metrics(tmp_path / "metrics.jsonl")]
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
    with RunLogger(RUN, tmp_path, None, "nats per token") as logger:
        logger.add(1, metrics(math.nan))
        with pytest.raises(NonFiniteError, match="step 1 has non-finite metrics and is not saved"):
            logger.flush()
    assert math.isnan(read_metrics(tmp_path / "metrics.jsonl")[0]["loss"])
