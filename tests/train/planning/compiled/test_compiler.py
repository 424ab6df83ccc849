"""The compiler's process: its environment, its errors, and what is read from its results."""

import dataclasses
import json
import sys

import pytest
from tiny import TINY

from jaxllm.errors import UserError
from jaxllm.train import TrainConfig
from jaxllm.train.mesh import MeshConfig
from jaxllm.train.planning.compiled import compiler
from jaxllm.train.planning.topology import parse_topology

RUN = TrainConfig(
    output="runs/x", steps=10, batch_size=8, seq_len=16, model=TINY, mesh=MeshConfig(fsdp=8)
)
TPU, GPU = parse_topology("v5p:2x2x2"), parse_topology("h100:8")


@pytest.mark.parametrize(
    ("error", "needed"),
    [
        ("Ran out of memory in memory space hbm. Used 120.5G of 95.74G hbm.", int(120.5 * 2**30)),
        (
            "total memory required for HLO temporaries (160.00G) exceeds available HBM (31.25G)",
            160 * 2**30,
        ),
    ],
)
def test_too_little_memory_is_a_figure(error, needed):
    found = compiler.read_result({"error": f"RESOURCE_EXHAUSTED: {error}"})
    assert (found.peak, found.collectives) == (needed, ())


def test_other_errors_are_reported():
    with pytest.raises(UserError, match="the compiler failed: INTERNAL: no"):
        compiler.read_result({"error": "INTERNAL: no"})


def test_results_count_arguments_temporaries_and_new_outputs(caplog):
    memory = {"argument_size": 100, "temp_size": 30, "output_size": 90, "alias_size": 80}
    one = {"kind": "all-gather", "axes": ["fsdp"], "dtype": "bf16", "runs": 2, "moved": 5.0}
    rest = {"traffic": 7.0, "largest_arrays": [], "seconds": 1, "unknown_loops": 2}
    found = compiler.read_result({"memory": memory, "collectives": [one], **rest})
    assert "2 loops of the program are counted once" in caplog.text
    assert (found.peak, found.traffic) == (140, 7.0)
    assert found.collectives[0].axes == ("fsdp",)


def test_the_process_has_an_environment_of_its_own(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")
    for topology in (TPU, GPU):
        env = compiler.environment(topology)
        assert "optimization_level" not in env["XLA_FLAGS"]
        assert "JAX_NUM_CPU_DEVICES" not in env
        assert env["JAX_PLATFORMS"] == "cpu"
    assert compiler.environment(TPU)["TPU_ACCELERATOR_TYPE"] == "v5p-8"


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setitem(compiler.PLUGINS, "tpu", "no_such_plugin")
    monkeypatch.setitem(compiler.PLUGINS, "cuda", "no_such_package.plugin")
    assert not compiler.is_installed("cuda")
    with pytest.raises(UserError, match=r"no_such_plugin is missing.*'jaxllm\[plan\]'"):
        compiler.compile_plan(RUN, TPU)


def test_requests_and_results_pass_through_files(monkeypatch):
    """A stand-in for the worker: says what it was asked, as the compiler's error."""
    script = (
        "import json, pathlib, sys\n"
        "asked = json.loads(pathlib.Path(sys.argv[1]).read_text())\n"
        "said = asked['topology'] + ' ' + str(asked['run']['mesh']['fsdp'])\n"
        "pathlib.Path(sys.argv[2]).write_text(json.dumps({'error': said}))\n"
    )
    run = compiler._run
    monkeypatch.setattr(compiler, "is_installed", lambda platform: True)
    monkeypatch.setattr(
        compiler,
        "_run",
        lambda command, *rest: run([sys.executable, "-c", script, *command[3:]], *rest),
    )
    with pytest.raises(UserError, match="the compiler failed: v5p:2x2x2 8"):
        compiler.compile_plan(RUN, TPU)


def test_the_end_of_a_process_that_fails_is_shown(monkeypatch):
    run, script = compiler._run, "import sys; print('no room', file=sys.stderr); sys.exit(3)"
    monkeypatch.setattr(compiler, "is_installed", lambda platform: True)
    monkeypatch.setattr(
        compiler, "_run", lambda command, *rest: run([sys.executable, "-c", script], *rest)
    )
    with pytest.raises(UserError, match="ended with status 3:\nno room"):
        compiler.compile_plan(dataclasses.replace(RUN, steps=2), TPU)


def test_requests_are_plain_data():
    from jaxllm.train.config import from_stored, to_dict

    assert from_stored(json.loads(json.dumps(to_dict(RUN))), "here") == RUN
