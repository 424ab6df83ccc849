"""HBM bytes of a decoded token: compiled without devices, recorded, and tabled in docs/pods.md.

    python benchmarks/decode_bytes.py record CASE...  # adds to decode_bytes.json; `jaxllm[plan]`
    python benchmarks/decode_bytes.py table           # rewrites the table in docs/pods.md

The least that a token needs is one read of the weights and of the cache. What the loop moves is
read from the optimized HLO; `record` takes minutes a case.
"""

import argparse
import json
import logging
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxllm.config import DecoderConfig, NumericsConfig
from jaxllm.generation import Sampling
from jaxllm.generation.loop import Program, Progress, advance
from jaxllm.generation.scores.processors import Text
from jaxllm.generation.scores.settings import stack_settings
from jaxllm.models import build_abstract
from jaxllm.sharding import MESH_AXES
from jaxllm.train.planning.compiled.compiler import environment
from jaxllm.train.planning.compiled.hlo import Instruction, Module, parse
from jaxllm.train.planning.compiled.hlo_traffic import is_counted, moved, size
from jaxllm.train.planning.compiled.worker import make_topology_mesh
from jaxllm.train.planning.topology import Topology, parse_topology

ROOT = Path(__file__).parents[1]
RECORDED, PAGE = ROOT / "benchmarks" / "decode_bytes.json", ROOT / "docs" / "pods.md"
BEGIN, END = "<!-- decode: made by benchmarks/decode_bytes.py -->", "<!-- decode: end -->"
DISTRIBUTIONS = {"tpu": "libtpu", "cuda": "jax-cuda12-pjrt"}
BF16 = NumericsConfig(param_dtype="bfloat16", dtype="bfloat16")
# Llama 3 8B with 4 of its 32 layers, which are all alike.
LLAMA = DecoderConfig(
    vocab_size=128256,
    embed_dim=4096,
    num_layers=4,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    mlp_dim=14336,
    max_len=131072,
    scan_layers=False,
    numerics=BF16,
)


class Case(NamedTuple):
    """A device of a topology, and what it decodes."""

    topology: str
    rows: int
    length: int  # tokens that the cache has room for


CASES = {
    "decode_v5p": Case("v5p:2x2x1", 8, 8192),
    "decode_h100": Case("h100:1", 8, 8192),
}


def main() -> None:
    """Runs one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["record", "compile", "table"])
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], metavar="CASE")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    jax.config.update("jax_platforms", "cpu")
    if arguments.command == "table":
        PAGE.write_text(with_table(PAGE.read_text()))
    for name in arguments.cases if arguments.command == "compile" else ():
        print(json.dumps(compile_case(CASES[name])))
    for name in arguments.cases if arguments.command == "record" else ():
        record(name)


def record(name: str) -> None:
    """Compiles a case, in a process of its own, and writes what its program moves."""
    topology = parse_topology(CASES[name].topology)
    command = [sys.executable, __file__, "compile", name]
    done = subprocess.run(command, env=environment(topology), stdout=subprocess.PIPE, check=True)
    package = DISTRIBUTIONS[topology.device.platform]
    versions = {each: metadata.version(each) for each in ("jax", package)}
    found = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    found[name] = {"versions": versions, **json.loads(done.stdout.splitlines()[-1])}
    RECORDED.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def compile_case(case: Case) -> dict[str, float]:
    """Returns the bytes of weights and cache, and those that the loop moves for each token."""
    mesh = one_device(parse_topology(case.topology))
    here, model = NamedSharding(mesh, PartitionSpec()), build_abstract(LLAMA)
    graphdef, state = nnx.split(model)

    def array(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=here)

    def abstract(tree: Any) -> Any:
        return jax.tree.map(lambda x: array(x.shape, x.dtype), tree)

    B, S, D = case.rows, case.length, LLAMA.embed_dim
    params = abstract(nnx.to_pure_dict(state))
    cache = abstract(jax.eval_shape(lambda: nnx.merge(graphdef, state).init_cache(B, S)))
    text = Text(array((B, S), jnp.int32), array((B,), jnp.int32), array((B,), jnp.int32))
    settings = jax.tree.map(np.asarray, stack_settings(LLAMA.vocab_size, [Sampling()] * B))
    progress = Progress(
        text,
        array((B, D), jnp.bfloat16),
        cache,
        array((B, S), jnp.float32),
        array((B,), jnp.int32),
    )
    given = params, progress, abstract(settings), array((), jnp.int32)
    with jax.set_mesh(mesh):
        compiled = advance.lower(Program(graphdef), *given).compile()
    module, memory = parse(compiled.as_text()), compiled.memory_analysis()
    assert memory is not None, "compilers of accelerators say it"
    total = lambda tree: float(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)))  # noqa: E731
    embedding = LLAMA.vocab_size * D * 2  # of which only the rows of the tokens are read
    return {
        "weights": total(params) - embedding,
        "cache": total(cache),
        "per_token": max(map(loop_bytes(module), loops_of(module))),
        "donated": float(memory.alias_size_in_bytes),
        "temporary": float(memory.temp_size_in_bytes),
    }


def one_device(topology: Topology) -> Mesh:
    """Returns a mesh of the first device."""
    sizes = {axis: topology.size if axis == "data" else 1 for axis in MESH_AXES}
    device = make_topology_mesh(topology, sizes).devices.reshape(-1)[:1]
    axes = (AxisType.Auto,) * len(MESH_AXES)
    return Mesh(device.reshape((1,) * len(MESH_AXES)), MESH_AXES, axis_types=axes)


def loops_of(module: Module) -> list[str]:
    """Returns the bodies of the loops of the whole program."""
    entry = module.computations[module.entry]
    return [body_of(one) for one in entry if one.op == "while"]


def body_of(loop: Instruction) -> str:
    """Returns the name of a loop's body."""
    return loop.rest.partition("body=%")[2].partition(",")[0].split()[0]


def loop_bytes(module: Module) -> Any:
    """Returns a function that counts the bytes of one run of a computation.

    Conditions are left out: greedy decoding without penalties skips all of them.
    """

    def count(name: str) -> float:
        instructions = module.computations[name]
        sizes, total = {one.name: size(one) for one in instructions}, 0.0
        for one in instructions:
            if one.op == "call":
                total += sum(map(count, one.called))
            elif one.op == "while":
                total += count(body_of(one))
            elif is_counted(one):
                total += moved(module, one, sizes) - workspace(one)
        return total

    return count


def workspace(one: Instruction) -> float:
    """Returns the scratch bytes among the outputs of a matmul of cuBLAS."""
    is_cublas = one.op == "custom-call" and "cublas" in one.rest
    return sum(shape.size for shape in one.outputs if shape.dtype == "s8") if is_cublas else 0.0


def with_table(page: str) -> str:
    """Returns the page with a new table between its marks."""
    found = json.loads(RECORDED.read_text())
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table(found)}\n\n{END}{rest.split(END)[1]}"


def table(found: dict[str, dict[str, Any]]) -> str:
    """Returns the table of what a token moves, beside the least."""
    rows = [
        "| case | weights, GB | cache, GB | moved for a token, GB | of weights + cache |",
        "|---|---|---|---|---|",
    ]
    for name, entry in found.items():
        least = entry["weights"] + entry["cache"]
        figures = (f"{entry[key] / 1e9:.2f}" for key in ("weights", "cache", "per_token"))
        rows.append(f"| {name} | {' | '.join(figures)} | {entry['per_token'] / least:.2f} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
