"""Messages about bad steps, and a run that skips them, but not for ever."""

import dataclasses

import jax.numpy as jnp
import pytest
from tiny import TINY

from jaxllm.errors import NonFiniteError
from jaxllm.train import TrainConfig
from jaxllm.train.monitoring.bad_step import BAD_STEP, MOST_SKIPPED, describe_bad_step
from jaxllm.train.monitoring.run_logger import RunLogger
from jaxllm.train.optimizers.config import BadStepsConfig, OptimizerConfig
from jaxllm.train.speed.stopwatch import Rate

RUN = TrainConfig(
    **{"output": "nowhere", "steps": 90, "batch_size": 8, "seq_len": 16, "model": TINY},
    optimizer=OptimizerConfig(bad_steps=BadStepsConfig(action="skip", spike=3.0)),
)


def test_the_batch_is_named():
    said = describe_bad_step(RUN, 5, {"loss": 1.0, "grad_norm": 40.0}, "is skipped")
    assert said.startswith("step 5 has a gradient norm of more than 3.0 times its recent mean and")
    assert said.endswith("its batch is examples 32 to 39 in the order of seed 0")
    said = describe_bad_step(RUN, 5, {"loss": float("nan")}, "is not saved")
    assert said.startswith("step 5 has non-finite metrics and is not saved: {'loss': nan}")


@pytest.mark.parametrize("outcome", ["stop", "skip"])
def test_bad_steps_stop_a_run_or_are_skipped_until_they_are_too_many(outcome, tmp_path, capsys):
    optimizer = dataclasses.replace(
        RUN.optimizer, bad_steps=BadStepsConfig(action=outcome, spike=3.0)
    )
    run = dataclasses.replace(RUN, optimizer=optimizer)
    metrics = {"loss": jnp.asarray(jnp.nan), "grad_norm": jnp.asarray(jnp.nan)}
    metrics[BAD_STEP] = jnp.asarray(True)
    rate = Rate(1, 1.0, 1, None)
    match = "is not saved" if outcome == "stop" else f"is the {MOST_SKIPPED}th bad one in a row"
    with RunLogger(run, tmp_path, None, "nats per token", rate) as logger:
        taken = 0

        def add_all() -> None:
            nonlocal taken
            for step in range(1, MOST_SKIPPED + 2):
                logger.add(step, metrics)
                taken = step

        with pytest.raises(NonFiniteError, match=match):
            add_all()
    assert taken == (1 if outcome == "stop" else MOST_SKIPPED)
    said = capsys.readouterr().err
    assert said.count("is skipped") == (0 if outcome == "stop" else MOST_SKIPPED - 1)
