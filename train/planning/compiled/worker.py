"""Compiles a training step for devices that are not there: `python -m ... REQUEST RESULT`.

Runs in a process of its own, which `compiler` starts: plugins are registered once per process and
by environment variables, and libtpu takes a lock.
"""

import json
import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from jaxllm.sharding import MESH_AXES
from jaxllm.train.config import TrainConfig, from_stored
from jaxllm.train.planning.step_program import make_step_program, mesh_shape
from jaxllm.train.planning.topology import Topology, parse_topology

from .hlo import parse
from .hlo_collectives import read_collectives
from .hlo_traffic import largest_arrays, vector_traffic

# What the compiler must know of a GPU: from CUDA's device properties of each.
_GPU = """gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32
 shared_memory_per_block: 49152 shared_memory_per_core: {per_core} threads_per_core_limit: 2048
 core_count: {cores} fpus_per_core: {fpus} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
 block_dim_limit_z: 65535 memory_bandwidth: {bandwidth} l2_cache_size: {l2} clock_rate_ghz: {clock}
 device_memory_size: {memory} shared_memory_per_block_optin: {optin}
 cuda_compute_capability {{ major: {major} }} registers_per_core_limit: 65536
 registers_per_block_limit: 65536 }}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }} device_description_str: "{name}" """
_HOPPER = {
    **{"per_core": 233472, "cores": 132, "fpus": 128, "l2": 52428800, "clock": 1.98},
    **{"optin": 232448, "major": 9},
}
_GPUS: dict[str, dict[str, Any]] = {
    "a100": {
        **{"per_core": 167936, "cores": 108, "fpus": 64, "l2": 41943040, "clock": 1.41},
        **{"optin": 166912, "major": 8},
    },
    "h100": _HOPPER,
    "h200": _HOPPER,
}


def main(request: Path, result: Path) -> None:
    """Reads a request, compiles, and writes the result or the compiler's error as JSON."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    jax.config.update("jax_platforms", "cpu")
    asked = json.loads(request.read_text())
    config, topology = from_stored(asked["run"], str(request)), parse_topology(asked["topology"])
    try:
        found = compile_step(config, topology, asked.get("hlo"))
    except jax.errors.JaxRuntimeError as error:
        found = {"error": str(error)}
    found["host_memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result.write_text(json.dumps(found))


def compile_step(config: TrainConfig, topology: Topology, hlo: str | None) -> dict[str, Any]:
    """Returns what the compiled step holds and moves, as plain data.

    Args:
        config: the run.
        topology: its devices.
        hlo: a file to write the optimized HLO to.
    """
    mesh = make_topology_mesh(topology, mesh_shape(config))
    steps, batch = make_step_program(config, mesh)
    start = time.monotonic()
    with jax.set_mesh(mesh):
        lowered = steps.train.lower(steps.abstract_state, batch)
        _say(f"lowered in {time.monotonic() - start:.0f} s, compiling")
        compiled = lowered.compile()
    _say(f"compiled in {time.monotonic() - start:.0f} s")
    text, memory = compiled.as_text(), compiled.memory_analysis()
    if hlo:
        Path(hlo).write_text(text)
    module = parse(text)
    names = ("argument_size", "output_size", "alias_size", "temp_size", "generated_code_size")
    return {
        "seconds": round(time.monotonic() - start, 1),
        "memory": {name: getattr(memory, f"{name}_in_bytes") for name in names},
        "collectives": [one._asdict() for one in read_collectives(module, dict(mesh.shape))],
        "traffic": vector_traffic(module),
        "largest_arrays": largest_arrays(module),
        "unknown_loops": len(module.unknown_loops),
    }


def make_topology_mesh(topology: Topology, shape: dict[str, int]) -> Mesh:
    """Returns a mesh of devices that are not there, as the platform's plugin describes them."""
    device = topology.device
    if device.platform == "tpu":
        described = topologies.get_topology_desc(platform="tpu", topology_name=str(topology))
    else:
        hosts = max(1, topology.size // device.per_host)
        described = topologies.get_topology_desc(
            platform="cuda",
            topology_name=device.name,
            topology=f"1x{hosts}x{topology.size // hosts}",
            target_config=_GPU.format(
                name=device.kinds[0],
                memory=device.memory,
                bandwidth=int(device.hbm),
                **_GPUS[device.name],
            ),
        )
    sizes = [shape[axis] for axis in MESH_AXES]
    devices = topologies.make_mesh(described, sizes, MESH_AXES).devices
    return Mesh(devices, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _end_with(parent: int) -> None:
    """Ends this process soon after its parent, which may be killed while the compiler works."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
