"""Runs and conversions killed at random moments: the same command goes on, to the same bits."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxllm.interop import load_pretrained
from jaxllm.params import split

FEW_OR_MANY = [pytest.param(2, id="few"), pytest.param(15, marks=pytest.mark.campaign, id="many")]
CONFIG = """
output: {output}
steps: 12
batch_size: 4
seq_len: 16
model: {{vocab_size: 256, embed_dim: 32, num_layers: 2, num_heads: 2, num_kv_heads: 1,
  head_dim: 16, mlp_dim: 64}}
data: {{text: [{text}], held_out: 0}}
save_every: 2
eval_every: 100
logging: {{tensorboard: false}}
"""
# The command, killed by itself after a number of events: files opened, renamed and removed.
# A number that is never reached lets the command end.
COMMAND = """
import os, signal, sys
kill_at, seen = int(sys.argv[1]), 0
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
folder = sys.argv[2]

def count(event, given):
    global seen
    if event in EVENTS and folder in str(given[0]):
        seen += 1
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

from jaxllm.cli import main
sys.addaudithook(count)
status = main(sys.argv[3:])
print("events", seen)
sys.exit(status)
"""


def run(kill_at: int, folder: Path, *command: str) -> int | None:
    """Runs a command of jaxllm; returns the number of its events, or None if it was killed."""
    arguments = [sys.executable, "-c", COMMAND, str(kill_at), str(folder), *command]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def bits(folder: Path) -> list[bytes]:
    return [x.tobytes() for x in jax.tree.leaves(split(load_pretrained(folder))[1])]


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    (folder / "text.txt").write_text("".join(f"{i} squared is {i * i}. " for i in range(300)))
    return folder


def train_command(work: Path, name: str) -> list[str]:
    text = CONFIG.format(output=work / name, text=work / "text.txt")
    (work / f"{name}.yaml").write_text(text)
    return ["train", str(work / f"{name}.yaml"), "--resume"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("kills", FEW_OR_MANY)
def test_training_goes_on_to_the_same_bits(work, kills, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    whole = work / f"whole {kills}"
    events = run(-1, whole, *train_command(work, whole.name))
    rng, killed, name = random.Random(0), 0, f"run {kills} 0"
    while killed < kills:
        command = train_command(work, name)
        if run(rng.randrange(1, events), work / name, *command) is None:
            killed += 1
            continue
        assert bits(work / name) == bits(whole)
        name = f"run {kills} {killed}"
    run(-1, work / name, *train_command(work, name))
    assert bits(work / name) == bits(whole)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kills", FEW_OR_MANY)
@pytest.mark.parametrize("to", ["hf", "native"])
def test_conversions_go_on_to_the_same_bits(work, to, kills, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    source = work / "source"
    if not source.exists():
        run(-1, source, *train_command(work, "source"))
    command = ["convert", str(source), str(work / f"{to} {kills} whole"), "--to", to]
    events, rng = run(-1, work / f"{to} {kills} whole", *command), random.Random(1)
    killed, out = 0, work / f"{to} {kills} 0"
    while killed < kills // 2 + 1:
        command[2] = str(out)
        if run(rng.randrange(1, events + 2), out, *command) is None:
            killed += 1
            continue
        out = work / f"{to} {kills} {killed}"
    assert run(-1, out, *command[:2], str(out), *command[3:]) is not None
    for path in work.glob(f"{to} {kills} *"):
        assert path.suffix != ".partial"
        assert bits(path) == bits(source)
        assert run(-1, path, *command[:2], str(path), *command[3:]) is not None  # again
