"""The compiler's worker, with the CPU's compiler in place of an accelerator's."""

import json

import jax
import pytest
from tiny import TINY

from jaxllm.train import TrainConfig, make_mesh
from jaxllm.train.config import to_dict
from jaxllm.train.mesh import MeshConfig
from jaxllm.train.planning.compiled import worker
from jaxllm.train.planning.compiled.compiler import read_result

RUN = TrainConfig(
    output="runs/x", steps=10, batch_size=8, seq_len=16, model=TINY, mesh=MeshConfig(fsdp=8)
)


def _request(tmp_path):
    asked = {"run": to_dict(RUN), "topology": "v5p:2x2x2", "hlo": str(tmp_path / "step.hlo")}
    (tmp_path / "request.json").write_text(json.dumps(asked))
    return tmp_path / "request.json", tmp_path / "result.json"


def test_a_step_is_compiled_and_summarized(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "make_topology_mesh", lambda topology, shape: make_mesh(fsdp=8))
    request, result = _request(tmp_path)
    worker.main(request, result)
    found = json.loads(result.read_text())
    assert found["host_memory"] > 2**27
    compiled = read_result(found)
    assert compiled.peak > 12 * 2**10
    assert {one.axes for one in compiled.collectives} == {("fsdp",)}
    assert compiled.traffic > 0 < compiled.seconds
    assert (tmp_path / "step.hlo").read_text().startswith("HloModule")


def test_an_error_of_the_compiler_is_a_result(tmp_path, monkeypatch):
    def fail(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 120.5G of 95.74G hbm")

    monkeypatch.setattr(worker, "compile_step", fail)
    request, result = _request(tmp_path)
    worker.main(request, result)
    assert "Used 120.5G" in json.loads(result.read_text())["error"]


@pytest.mark.parametrize("name", worker._GPUS)
def test_every_gpu_has_a_description(name):
    text = worker._GPU.format(name=name, memory=1, bandwidth=2, **worker._GPUS[name])
    assert "{" in text
    assert f"core_count: {worker._GPUS[name]['cores']} " in text
