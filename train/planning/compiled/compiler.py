"""Runs the compiler of a platform in a process of its own, and reads what it says."""

import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any, NamedTuple

from jaxllm.errors import UserError
from jaxllm.train.config import TrainConfig, to_dict
from jaxllm.train.planning.collectives import Collective, collectives_from_json
from jaxllm.train.planning.topology import Topology

log = logging.getLogger("jaxllm")

PLUGINS = {"tpu": "libtpu", "cuda": "jax_plugins.xla_cuda12"}
_WORKER = "jaxllm.train.planning.compiled.worker"
_TPU_TYPES = {"v5e": "v5litepod-8", "v5p": "v5p-8", "v6e": "v6e-8"}
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# How the compiler of TPUs says what a program needs and what there is.
_NEEDS = (
    re.compile(r"Used ([\d.]+)([KMGT]?)B? of [\d.]+[KMGT]?B? hbm"),
    re.compile(r"memory required for .*? \(([\d.]+)([KMGT]?)B?\) exceeds available"),
)


class Compiled(NamedTuple):
    """Memory, collectives and HBM traffic of a compiled step, for each device."""

    peak: int  # bytes: arguments, results and temporaries
    collectives: tuple[Collective, ...]  # empty if the program does not fit
    traffic: float  # bytes of HBM that are read and written beside matmuls
    largest_arrays: tuple[tuple[str, float, str], ...]
    seconds: float  # that compiling took


def is_installed(platform: str) -> bool:
    """Whether the compiler of a platform ("tpu" or "cuda") can run here."""
    try:
        return importlib.util.find_spec(PLUGINS[platform]) is not None
    except ModuleNotFoundError:
        return False


def check_installed(platform: str) -> None:
    """Raises UserError if the compiler of a platform cannot run here."""
    if not is_installed(platform):
        raise UserError(
            f"the compiler for {platform} is not installed ({PLUGINS[platform]} is missing); "
            "install the extra with pip install 'jaxllm[plan]', or use --analytic, without "
            "--compile and --hlo"
        )


def compile_plan(config: TrainConfig, topology: Topology, hlo: Path | None = None) -> Compiled:
    """Compiles the training step of a run for devices that are not there.

    Takes minutes and a few GB of memory. The log says how far it is.

    Args:
        config: the run; its mesh fits the topology.
        topology: the devices.
        hlo: a file to write the optimized HLO to.

    Raises:
        UserError: the compiler is not installed, or it failed for a reason other than memory.
    """
    check_installed(topology.device.platform)
    with tempfile.TemporaryDirectory() as folder:
        request, result = Path(folder, "request.json"), Path(folder, "result.json")
        asked = {"run": to_dict(config), "topology": str(topology), "hlo": hlo and str(hlo)}
        request.write_text(json.dumps(asked))
        with open(Path(folder, "log"), "w+") as output:
            status = _run(
                [sys.executable, "-m", _WORKER, str(request), str(result)], topology, output
            )
            output.seek(0)
            if status or not result.exists():
                last = [line for line in output.read().splitlines() if line.strip()][-12:]
                raise UserError(
                    f"the compiler for {topology} ended with status {status}:\n" + "\n".join(last)
                )
        return read_result(json.loads(result.read_text()))


def _run(command: list[str], topology: Topology, output: IO[str]) -> int:
    """Runs the worker, and logs every half minute that it does; returns its exit status."""
    log.info("compiling for %s: this takes minutes", topology)
    start = time.monotonic()
    with subprocess.Popen(
        command, env=environment(topology), stdout=output, stderr=output
    ) as child:
        try:
            while True:
                try:
                    return child.wait(30)
                except subprocess.TimeoutExpired:
                    log.info("compiling for %s: %.0f s", topology, time.monotonic() - start)
        except BaseException:
            child.kill()
            raise


def environment(topology: Topology) -> dict[str, str]:
    """Returns the environment variables of the worker's process."""
    name, platform = topology.device.name, topology.device.platform
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    for variable in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_NUM_CPU_DEVICES"):
        env.pop(variable, None)
    if platform == "tpu":
        return env | {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_ACCELERATOR_TYPE": _TPU_TYPES[name],
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }
    # Without a device there is nothing to time kernels on.
    return env | {"XLA_FLAGS": "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"}


def read_result(found: dict[str, Any]) -> Compiled:
    """Returns what a worker wrote. Raises UserError for an error other than too little memory."""
    if "error" in found:
        return Compiled(_needed_bytes(found["error"]), (), 0.0, (), 0.0)
    if unknown := found["unknown_loops"]:
        log.warning(
            "%d loops of the program are counted once, since their lengths are unknown: it moves "
            "more than is said here",
            unknown,
        )
    memory = found["memory"]
    peak = memory["argument_size"] + memory["temp_size"]
    peak += memory["output_size"] - memory["alias_size"]
    return Compiled(
        peak,
        collectives_from_json(found["collectives"]),
        found["traffic"],
        tuple((text, size, scope) for text, size, scope in found["largest_arrays"]),
        found["seconds"],
    )


def _needed_bytes(error: str) -> int:
    """Returns the bytes that a program needs, from the error that says it does not fit."""
    for pattern in _NEEDS:
        if needed := pattern.search(error):
            return int(float(needed[1]) * _UNITS[needed[2]])
    raise UserError(f"the compiler failed: {error[:2000]}")
