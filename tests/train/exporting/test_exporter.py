"""Exports while training: what they hold, how many stay, their errors, and kills in their midst."""

import dataclasses
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from tiers import examples
from tiny import TINY, random_model
from transformers import AutoModelForCausalLM

from jaxllm.errors import UserError
from jaxllm.interop import export_step, load_pretrained, save_pretrained
from jaxllm.interop.adapters.merging import load_adapter
from jaxllm.params import named_parameters, split
from jaxllm.train import ConfigError, TrainConfig, train
from jaxllm.train.data.documents import DataConfig
from jaxllm.train.exporting.exporter import open_exporter
from jaxllm.train.mesh import MeshConfig
from jaxllm.train.settings.export import ExportConfig
from jaxllm.train.settings.logging import LoggingConfig

TEXT = "".join(f"{i} squared is {i * i}. " for i in range(200))


def exports(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "exports").iterdir())


def arrays(model) -> dict[str, np.ndarray]:
    return {name: np.asarray(x.get_value()) for name, x in named_parameters(model).items()}


@pytest.fixture
def small(tmp_path) -> TrainConfig:
    (tmp_path / "text.txt").write_text(TEXT)
    return TrainConfig(
        output=str(tmp_path / "run"),
        steps=5,
        batch_size=8,
        seq_len=16,
        model=dataclasses.replace(TINY, vocab_size=256, num_layers=1),
        data=DataConfig(text=(str(tmp_path / "text.txt"),), held_out=0, tokenizer="bytes"),
        mesh=MeshConfig(data=8),
        logging=LoggingConfig(tensorboard=False),
        save_every=100,
        export=ExportConfig(every=2),
    )


def make_steps(run: Path, *steps: int) -> None:
    """Folders that look like complete checkpoints."""
    for step in steps:
        (run / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
        (run / "checkpoints" / str(step) / "_CHECKPOINT_METADATA").write_text("{}")


def write(run, path, *, step, to, dtype):
    """Stands for a real export."""
    path.mkdir()
    (path / "weights").write_text(f"{step} {to} {dtype}")


def test_a_run_exports_its_weights_and_those_of_its_last_step(small):
    result = train(small, export=export_step)
    run = Path(small.output)
    assert exports(run) == ["4", "5"]
    expected = arrays(result.model)
    found = arrays(load_pretrained(run / "exports" / "5"))
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x, err_msg=name)
    four = arrays(load_pretrained(run / "exports" / "4"))
    assert not np.array_equal(four["embed.embedding"], expected["embed.embedding"])
    torch_model = AutoModelForCausalLM.from_pretrained(run / "exports" / "5").eval()
    tokens = np.arange(12)[None]
    ours = np.asarray(jax.jit(lambda model: model(tokens)[0])(result.model))
    with torch.no_grad():
        np.testing.assert_allclose(torch_model(torch.tensor(tokens)).logits, ours, atol=1e-5)


def test_without_a_writer_the_run_does_not_begin(small):
    with pytest.raises(ConfigError, match=r"train\(config, export=jaxllm\.interop\.export_step\)"):
        train(small)
    assert not (Path(small.output) / "checkpoints").exists()


def test_an_export_waits_for_its_checkpoint_and_old_ones_go(small, tmp_path):
    run = tmp_path / "run"
    make_steps(run, 2)
    with open_exporter(small, run, write) as exporter:
        exporter.begin(2)
        exporter.finish()
        exporter.begin(4)
        assert exporter.pinned == {4}
        assert exports(run) == ["2"]
        make_steps(run, 4, 5)
        exporter.begin(5)
        exporter.finish()
    assert exports(run) == ["4", "5"]
    assert (run / "exports" / "5" / "weights").read_text() == "5 hf None"


@pytest.mark.parametrize("error", [UserError("no space left"), ZeroDivisionError("a bug")])
def test_an_error_is_raised_at_the_next_step_and_only_once(small, tmp_path, error):
    def fail(*_, **__):
        raise error

    make_steps(tmp_path / "run", 2)
    with open_exporter(small, tmp_path / "run", fail) as exporter:
        exporter.begin(2)
        exporter._thread.join()
        with pytest.raises(type(error), match=str(error)):
            exporter.check()
        exporter.check()
        exporter.begin(2)
        with pytest.raises(type(error), match=str(error)):
            exporter.finish()


@pytest.mark.parametrize("failing", examples([2, 5], 2))
def test_an_error_ends_a_run(small, failing):
    """An error of the last export is raised when the run ends."""

    def fail(run, path, *, step, **options):
        if step == failing:
            raise UserError(f"cannot write {path.name}")

    with pytest.raises(UserError, match=f"cannot write {failing}"):
        train(small, export=fail)


def test_what_a_killed_run_left_is_removed_and_made_again(small, tmp_path):
    run = tmp_path / "run"
    make_steps(run, 2, 3)
    (run / "exports" / "2.partial").mkdir(parents=True)
    with open_exporter(small, run, write) as exporter:
        assert exports(run) == []
        exporter.catch_up(3)
        exporter.finish()
        assert exports(run) == ["2"]
        (run / "exports" / "2" / "weights").write_text("mine")
        exporter.catch_up(3)  # it is there
        exporter.finish()
        assert (run / "exports" / "2" / "weights").read_text() == "mine"


def test_exports_after_the_step_where_a_run_goes_on_are_set_aside(small, tmp_path):
    run = tmp_path / "run"
    make_steps(run, 2)
    for step in (2, 4):
        (run / "exports" / str(step)).mkdir(parents=True)
        (run / "exports" / str(step) / "weights").write_text("earlier")
    with open_exporter(small, run, write) as exporter:
        exporter.catch_up(2)
        assert exports(run) == ["2"]
        assert (run / "aside" / "exports" / "4" / "weights").read_text() == "earlier"
        make_steps(run, 4)
        exporter.begin(4)
        exporter.finish()
    assert (run / "exports" / "4" / "weights").read_text() == "4 hf None"


def test_a_run_that_fails_does_not_wait_for_a_checkpoint(small, tmp_path):
    with open_exporter(small, tmp_path / "run", write) as exporter:
        exporter.begin(2)
        thread = exporter._thread
    assert not thread.is_alive()
    assert threading.active_count() < 100
    assert not (tmp_path / "run" / "exports").exists()


RUN = """
output: {output}
steps: 9
batch_size: 4
seq_len: 16
init_from: {base}
data: {{text: [{text}], held_out: 0}}
optimizer: {{learning_rate: 0.01, lora: {{rank: 2}}}}
logging: {{tensorboard: false}}
save_every: 3
export: {{every: 2, keep: 3, to: {to}}}
"""
# The command, killed by itself after a number of events below `exports`.
COMMAND = """
import os, signal, sys
kill_at, seen = int(sys.argv[1]), 0
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")

def count(event, given):
    global seen
    if event in EVENTS and "/exports" in str(given[0]):
        seen += 1
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

from jaxllm.cli import main
sys.addaudithook(count)
status = main(sys.argv[2:])
print("events", seen)
sys.exit(status)
"""


def run_killed(kill_at: int, file: Path) -> int | None:
    """Runs the command; returns the number of its events, or None if it was killed."""
    arguments = [sys.executable, "-c", COMMAND, str(kill_at), "train", str(file), "--resume"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def bits(place: Path, to: str) -> list[bytes]:
    model = load_adapter(place) if to == "peft" else load_pretrained(place)
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(split(model)[1])]


@pytest.mark.exhaustive
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.campaign)])
@pytest.mark.parametrize("to", ["hf", "peft"])
def test_a_kill_leaves_whole_exports_and_the_run_makes_the_others(tmp_path, to, kills, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    (tmp_path / "text.txt").write_text(TEXT)
    base = tmp_path / "base"
    save_pretrained(random_model(vocab_size=256), base, format="hf")

    def begin(name: str) -> Path:
        text = RUN.format(output=tmp_path / name, base=base, text=tmp_path / "text.txt", to=to)
        (tmp_path / f"{name}.yaml").write_text(text)
        return tmp_path / f"{name}.yaml"

    events = run_killed(-1, begin("whole"))
    expected = {name: bits(tmp_path / "whole" / "exports" / name, to) for name in ("6", "8", "9")}
    assert exports(tmp_path / "whole") == sorted(expected)
    rng, killed, name = random.Random(0), 0, "run 0"
    while killed < kills:
        is_whole = run_killed(rng.randrange(1, events), begin(name)) is not None
        for place in (tmp_path / name / "exports").glob("*"):
            if place.name in expected:
                assert bits(place, to) == expected[place.name]
            elif place.suffix != ".partial":
                assert bits(place, to)  # it can be read as a whole
        killed += not is_whole
        if is_whole:
            assert exports(tmp_path / name) == sorted(expected)
            name = f"run {killed}"
    run_killed(-1, begin(name))
    assert exports(tmp_path / name) == sorted(expected)
    for own, value in expected.items():
        assert bits(tmp_path / name / "exports" / own, to) == value
