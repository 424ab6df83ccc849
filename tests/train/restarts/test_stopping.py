"""SIGTERM asks a run to stop, once; afterwards it has its usual effect."""

import os
import signal
import threading

import pytest
from tiny import TINY

from jaxllm.train import TrainConfig
from jaxllm.train.restarts.stopping import (
    Interrupted,
    interruption,
    naming_the_run,
    resume_command,
    stopping_on_sigterm,
)
from jaxllm.train.settings.logging import LoggingConfig


def test_sigterm_is_noticed_after_the_step():
    before = signal.getsignal(signal.SIGTERM)
    with stopping_on_sigterm() as should_stop:
        assert not should_stop(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert should_stop(2)
    assert signal.getsignal(signal.SIGTERM) == before


def test_other_threads_leave_the_signal_alone():
    def run() -> None:
        with stopping_on_sigterm() as should_stop:
            found.append((should_stop(1), signal.getsignal(signal.SIGTERM)))

    found: list = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [(False, signal.getsignal(signal.SIGTERM))]


def test_an_interruption_says_where_the_run_stands(tmp_path):
    config = TrainConfig(
        output=str(tmp_path),
        steps=9,
        batch_size=8,
        seq_len=16,
        model=TINY,
        logging=LoggingConfig(tensorboard=False),
    )
    command = f"jaxllm train {tmp_path}/config.yaml --resume"
    assert resume_command(config) == command
    again = r"^interrupted before the first step; .* continue with the same command$"
    with pytest.raises(Interrupted, match=again), naming_the_run(config):
        raise KeyboardInterrupt
    (tmp_path / "config.yaml").touch()
    text = str(interruption(config, 7))
    assert text == f"interrupted after step 7; nothing is saved yet; continue with {command}"
    for step in (2, 4):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
        (tmp_path / "checkpoints" / str(step) / "_CHECKPOINT_METADATA").touch()
    assert "step 7; the newest checkpoint is of step 4; " in str(interruption(config, 7))
