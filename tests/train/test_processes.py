"""Two processes of four devices train what one process of eight devices trains."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
import jax
process, port, output, fsdp, tensor = int(sys.argv[1]), *sys.argv[2:]
if process >= 0:
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
from jaxllm.config import DecoderConfig
from jaxllm.train import TrainConfig, train
from jaxllm.train.data import DataConfig
from jaxllm.train.mesh import MeshConfig
from jaxllm.train.metrics import read_metrics

sizes = dict(vocab_size=256, embed_dim=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8)
config = TrainConfig(
    output=output, steps=4, batch_size=8, seq_len=32, save_every=4, eval_every=2,
    data=DataConfig(text=(output + ".txt",), held_out=0.3),
    model=DecoderConfig(**sizes, mlp_dim=64),
    mesh=MeshConfig(fsdp=int(fsdp), tensor=int(tensor)), tensorboard=False,
)
train(config)
"""


def run(output: Path, fsdp: int, tensor: int, processes: int) -> list[dict]:
    """The metrics of a run over eight devices."""
    output.with_suffix(".txt").write_text("".join(f"{i} squared is {i * i}. " for i in range(900)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    devices = {"JAX_NUM_CPU_DEVICES": str(8 // processes)}
    arguments = [str(port), str(output), str(fsdp), str(tensor)]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), *arguments],
            env={**os.environ, **devices},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (range(processes) if processes > 1 else [-1])
    ]
    said = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0] * len(started), "\n".join(said)
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> list[dict]:
    """The metrics of the run by one process."""
    return run(tmp_path_factory.mktemp("alone") / "run", 8, 1, 1)


# Rows split over the processes; the same rows in both, since tensor spans them.
@pytest.mark.parametrize(("fsdp", "tensor"), [(4, 2), (1, 8)])
def test_the_same_losses(tmp_path, alone, fsdp, tensor):
    together = run(tmp_path / "run", fsdp, tensor, 2)
    assert [row["step"] for row in together] == [row["step"] for row in alone]
    for ours, expected in zip(together, alone, strict=True):
        for name, value in expected.items():
            assert ours[name] == pytest.approx(value, rel=1e-5)
    assert (tmp_path / "run" / "checkpoints" / "4" / "commit_success.txt").is_file()
