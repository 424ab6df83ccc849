"""Runs and their sources on object stores: a bucket on this machine, and a store in memory."""

import json
import os
import signal
import time

import gcs_server
import numpy as np
import pytest
import s3_server
from memory_store import memory_store
from tiny import random_of
from together import start

from jaxllm.config import DecoderConfig
from jaxllm.hub import local_path
from jaxllm.interop import load_pretrained, save_pretrained
from jaxllm.models import Decoder
from jaxllm.params import named_parameters
from jaxllm.storage.download import CACHE
from jaxllm.storage.mirror import copy_folder
from jaxllm.storage.paths import open_path
from jaxllm.train.data.text import text_documents
from jaxllm.train.data.vectors import read_vectors

CONFIG = """
output: {output}
steps: 6
batch_size: 8
seq_len: 16
data: {{text: ["{data}/*.txt"], held_out: 0.3}}
model: {{vocab_size: 256, embed_dim: 16, num_layers: 2, num_heads: 2, num_kv_heads: 1, head_dim: 8,
        mlp_dim: 24}}
mesh: {{fsdp: 2}}
save_every: 2
eval_every: 3
keep: 2
logging: {{tensorboard: true}}
"""
TEXT = "".join(f"{i} squared is {i * i}. " for i in range(400))


def jaxllm(*arguments: str, **variables: str) -> tuple[str, str]:
    process = start("-m", "jaxllm", *arguments, devices=2, **variables)
    out, error = process.communicate(timeout=400)
    assert process.returncode == 0, error
    return out, error


@pytest.fixture(params=["gs", "s3"])
def served(tmp_path, request):
    """A bucket with data and a config, its address, and what leads commands to it."""
    serve = {"gs": gcs_server, "s3": s3_server}[request.param].bucket
    with serve() as (address, objects, variables):
        for number in range(2):
            objects.put(f"data/{number}.txt", f"{number} {TEXT}".encode())
        config = CONFIG.format(output=f"{address}/runs/x", data=f"{address}/data")
        objects.put("run.yaml", config.encode())
        yield address, objects, variables | {CACHE: str(tmp_path / "cache")}


@pytest.mark.exhaustive
def test_a_run_in_a_bucket_is_killed_resumed_and_equal_to_a_local_one(served, tmp_path):
    address, objects, variables = served
    first = start("-m", "jaxllm", "train", f"{address}/run.yaml", devices=2, **variables)
    deadline = time.monotonic() + 240
    while "runs/x/checkpoints/2/commit_success.txt" not in objects.data:
        assert first.poll() is None, first.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert "runs/x/.lock" in objects.data  # of a dead holder
    out, _ = jaxllm("train", f"{address}/run.yaml", "--resume", **variables)
    assert f"wrote {address}/runs/x" in out
    assert "runs/x/.lock" not in objects.data
    names = {name.split("/")[2] for name in objects.data if name.startswith("runs/x/")}
    names -= {"aside"}  # of a checkpoint that was being written
    assert names == {"config.yaml", "metrics.jsonl", "loss.png", "checkpoints", "tensorboard"}
    (tmp_path / "data").mkdir()
    for number in range(2):
        (tmp_path / "data" / f"{number}.txt").write_text(f"{number} {TEXT}")
    config = CONFIG.format(output=tmp_path / "run", data=tmp_path / "data")
    (tmp_path / "run.yaml").write_text(config)
    jaxllm("train", str(tmp_path / "run.yaml"), **variables)
    shown, _ = jaxllm("diff", f"{address}/runs/x", str(tmp_path / "run"), "--json", **variables)
    found = json.loads(shown)
    assert (found["same"], found["checkpoints"], found["last_steps"]) == (True, [4, 6], [6, 6])
    listed, _ = jaxllm("runs", f"{address}/runs", "--json", **variables)
    assert [(run["name"], run["state"]) for run in json.loads(listed)] == [("x", "finished")]


@pytest.mark.exhaustive
def test_a_second_run_in_a_bucket_is_refused_and_a_host_sees_the_folder(served):
    address, objects, variables = served
    running = start(
        *("-m", "jaxllm", "train", f"{address}/run.yaml", "--steps", "1000000"),
        devices=2,
        **variables,
    )
    try:
        while "parameters" not in running.stderr.readline():
            assert running.poll() is None
        second = start("-m", "jaxllm", "train", f"{address}/run.yaml", devices=2, **variables)
        error = second.communicate(timeout=240)[1]
        assert second.returncode == 2
        assert f"{address}/runs/x is in use by another run (process {running.pid} on " in error
    finally:
        running.kill()
        running.communicate()
    out, _ = jaxllm("doctor", f"{address}/run.yaml", "--size", "1", **variables)
    assert "seen by 1 of 1" in out
    assert not [name for name in objects.data if "doctor" in name]


MOVE = """
from jaxllm.storage.paths import open_path
from jaxllm.train.restarts.sound_step import _move_aside
for _ in range(2):
    print(_move_aside(open_path("ADDRESS/runs/x/checkpoints/4")))
    open_path("ADDRESS/runs/x/checkpoints/4/model/b").write_text("again")
"""


@pytest.mark.exhaustive
def test_a_damaged_checkpoint_in_a_bucket_is_moved_aside(served):
    address, objects, variables = served
    objects.put("runs/x/checkpoints/4/model/a", b"damaged")
    process = start("-c", MOVE.replace("ADDRESS", address), devices=1, **variables)
    out, error = process.communicate(timeout=400)
    assert process.returncode == 0, error
    aside = "runs/x/aside"
    assert out.split() == [f"{address}/{aside}/4", f"{address}/{aside}/4.2"]
    assert objects.data[f"{aside}/4/model/a"][1] == b"damaged"
    assert objects.data[f"{aside}/4.2/model/b"][1] == b"again"
    left = [name for name in objects.data if name.startswith("runs/x/checkpoints/")]
    assert left == ["runs/x/checkpoints/4/model/b"]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    with memory_store() as system:
        yield system


MODEL = DecoderConfig(
    vocab_size=96,
    embed_dim=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_dim=24,
)


def test_a_checkpoint_in_a_bucket_is_read_as_a_local_one(store, tmp_path):
    model = random_of(MODEL)
    save_pretrained(model, tmp_path / "llama", format="hf")
    copy_folder(tmp_path / "llama", open_path("s3://bucket/llama"))
    found = load_pretrained("s3://bucket/llama")
    assert isinstance(found, Decoder)
    theirs = named_parameters(model)
    for name, variable in named_parameters(found).items():
        assert np.array_equal(variable.get_value(), theirs[name].get_value()), name
    assert (local_path("s3://bucket/llama") / "config.json").is_file()


def test_data_in_a_bucket_are_read_as_local_ones(store, tmp_path):
    store.pipe("s3://bucket/a.txt", b"first")
    store.pipe("s3://bucket/b.jsonl", b'{"text": "second"}\n')
    assert text_documents(["s3://bucket/*.txt", "s3://bucket/b.jsonl"]) == ["first", "second"]
    np.savez(tmp_path / "v.npz", inputs=np.ones((2, 3), np.float32))
    store.put(str(tmp_path / "v.npz"), "s3://bucket/v.npz")
    inputs, targets = read_vectors("s3://bucket/v.npz")
    assert (inputs.shape, targets) == ((2, 3), None)


def test_exports_are_written_to_no_store(store):
    with pytest.raises(ValueError, match="gs://bucket/x: this is written to a folder of this"):
        save_pretrained(random_of(MODEL), "gs://bucket/x")
