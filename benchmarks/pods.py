"""The training step on pods: compiled without devices, recorded, and tabled in docs/pods.md.

    python benchmarks/pods.py record CASE...   # compiles, adds to pods.json; needs `jaxllm[plan]`
    python benchmarks/pods.py table            # rewrites the table in docs/pods.md
    python benchmarks/pods.py heads            # rewrites the plans at the heads of configs/

`record` takes half a minute a case (GPUs) to a few minutes (TPUs) on two idle cores; `all` stands
for all cases. Tests compare the analytic plan with what is recorded.
"""

import argparse
import json
import logging
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxllm.train import TrainConfig, load_config
from jaxllm.train.planning.collectives import collectives_from_json
from jaxllm.train.planning.compiled.compiler import Compiled, compile_plan
from jaxllm.train.planning.plan import Plan, make_plan
from jaxllm.train.planning.render import fits, render
from jaxllm.train.planning.topology import Topology, parse_topology

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "benchmarks" / "pods.json"
PAGE = ROOT / "docs" / "pods.md"
BEGIN, END = "<!-- pods: made by benchmarks/pods.py -->", "<!-- pods: end -->"
PLAN_HEAD = "# Plan, by the analytic model"
DISTRIBUTIONS = {"tpu": ("libtpu",), "cuda": ("jax-cuda12-pjrt",)}


class Case(NamedTuple):
    """A run on a topology: a file of configs/, and what differs from it."""

    config: str
    topology: str
    overrides: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The command that plans it."""
        return " ".join(
            ["jaxllm plan", f"configs/{self.config}", "--topology", self.topology, *self.overrides]
        )

    def load(self) -> tuple[TrainConfig, Topology]:
        """Returns the run and the topology."""
        config = load_config(ROOT / "configs" / self.config, self.overrides)
        return config, parse_topology(self.topology)


# A small Llama with one block of queries, whose compilation takes a minute.
SMALL = (
    *("--model.embed-dim", "1024", "--model.num-heads", "8", "--model.num-kv-heads", "4"),
    *("--model.mlp-dim", "3584", "--model.num-layers", "8", "--model.vocab-size", "32768"),
    *("--seq-len", "128", "--batch-size", "512"),
)
CASES = {
    "small_v5p": Case("llama3_8b_v5p.yaml", "v5p:2x2x4", SMALL),
    "small_h100": Case("llama3_8b_h100.yaml", "h100:8", SMALL),
    "llama3_8b_v5p": Case("llama3_8b_v5p.yaml", "v5p:2x2x4"),
    "llama3_8b_v5p_32k": Case(
        "llama3_8b_v5p.yaml",
        "v5p:2x2x4",
        (
            *(
                "--mesh.fsdp",
                "2",
                "--mesh.expert",
                "1",
                "--mesh.sequence",
                "8",
                "--seq-len",
                "32768",
            ),
            *("--batch-size", "4", "--model.max-len", "32768"),
        ),
    ),
    "llama3_8b_v5p_long": Case(
        "llama3_8b_v5p.yaml",
        "v5p:2x2x4",
        (
            *(
                "--mesh.fsdp",
                "2",
                "--mesh.expert",
                "1",
                "--mesh.sequence",
                "8",
                "--seq-len",
                "131072",
            ),
            *("--batch-size", "2", "--model.max-len", "131072"),
        ),
    ),
    "llama3_8b_h100": Case("llama3_8b_h100.yaml", "h100:8"),
    "llama3_70b_v5p": Case("llama3_70b_v5p.yaml", "v5p:4x4x4"),
    "llama3_70b_v5p_tensor": Case(
        "llama3_70b_v5p.yaml", "v5p:4x4x4", ("--mesh.expert", "1", "--mesh.tensor", "4")
    ),
    "llama3_70b_h100": Case("llama3_70b_h100.yaml", "h100:64"),
    "mixtral_8x7b_h200": Case("mixtral_8x7b_h200.yaml", "h200:8"),
    "mixtral_8x7b_h100": Case("mixtral_8x7b_h200.yaml", "h100:8"),
    "llama4_scout_v5p": Case("llama4_scout_v5p.yaml", "v5p:4x4x4"),
    "qwen3_30b_a3b_h100": Case("qwen3_30b_a3b_h100.yaml", "h100:16"),
    "gpt_oss_20b_h100": Case("gpt_oss_20b_h100.yaml", "h100:8"),
    "deepseek_v3_v5p": Case("deepseek_v3_v5p.yaml", "v5p:4x8x8"),
}


def main() -> None:
    """Runs one of the three commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["record", "table", "heads"])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"all, or {', '.join(CASES)}")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    jax.config.update("jax_platforms", "cpu")
    if unknown := set(arguments.cases) - {"all", *CASES}:
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; the cases are all, {', '.join(CASES)}")
    if arguments.command == "record":
        for name in CASES if "all" in arguments.cases else arguments.cases:
            record(name)
    elif arguments.command == "table":
        PAGE.write_text(with_table(PAGE.read_text()))
    else:
        for path, text in heads():
            path.write_text(text)


def record(name: str) -> None:
    """Compiles a case and writes what the compiler says of it."""
    config, topology = CASES[name].load()
    compiled = compile_plan(config, topology)
    versions = {"jax": metadata.version("jax")}
    for package in DISTRIBUTIONS[topology.device.platform]:
        versions[package] = metadata.version(package)
    found = read_recorded(RECORDED.read_text()) if RECORDED.exists() else {}
    found[name] = {"versions": versions, **compiled._asdict()}
    found[name]["collectives"] = [one._asdict() for one in compiled.collectives]
    RECORDED.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def read_recorded(text: str) -> dict[str, dict[str, Any]]:
    """Returns the recorded results, by case."""
    return json.loads(text)


def recorded_plan(name: str, entry: dict[str, Any]) -> Plan:
    """Returns the plan of a case by what was recorded of its compiled program."""
    config, topology = CASES[name].load()
    fields = {field: entry[field] for field in Compiled._fields}
    fields["collectives"] = collectives_from_json(entry["collectives"])
    return make_plan(config, topology, Compiled(**fields))


def with_table(page: str) -> str:
    """Returns the page with a new table between its marks."""
    found = read_recorded(RECORDED.read_text()) if RECORDED.exists() else {}
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table(found)}\n\n{END}{rest.split(END)[1]}"


def table(found: dict[str, dict[str, Any]]) -> str:
    """Returns the table of all cases: the compiler's figures, and the model's beside them."""
    rows = [
        "| case | by | peak, GiB of HBM | received, GB, x minimum | executed x model FLOPs "
        "| MFU: overlapped, not | command |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, case in CASES.items():
        plans = [make_plan(*case.load())]
        if name in found:
            plans.insert(0, recorded_plan(name, found[name]))
        rows += [row(name, case, plan) for plan in plans]
    return "\n".join(rows)


def row(name: str, case: Case, plan: Plan) -> str:
    """Returns one row of the table."""
    least = sum(plan.minimum.values())
    peak = f"{plan.peak / 2**30:.1f} of {plan.topology.device.memory / 2**30:.1f}"
    return (
        f"| {name} | {plan.source} | {peak}{'' if plan.spare >= 0 else ': does not fit'} "
        f"| {plan.moved / 1e9:.1f}, {plan.moved / least:.2f} "
        f"| {plan.executed_flops / plan.model_flops:.2f} "
        f"| {plan.mfu(plan.step_seconds):.0%}, {plan.mfu(plan.serial_seconds):.0%} "
        f"| `{case.command}` |"
    )


def heads() -> Iterator[tuple[Path, str]]:
    """Yields the configs of the cases, each with its plan at its head."""
    for case in CASES.values():
        own = f"{case.config.rsplit('_', 1)[1].removesuffix('.yaml')}:"
        if case.overrides or not case.topology.startswith(own):
            continue
        path = ROOT / "configs" / case.config
        yield path, with_head(path.read_text(), case)


def with_head(text: str, case: Case) -> str:
    """Returns the text of a config with a new plan at the end of its head comment."""
    plan = make_plan(*case.load())
    lines = render(plan).splitlines()
    stop = next(i for i, line in enumerate(lines) if line.startswith("parameters "))
    shown = "\n".join(f"#   {line}" for line in lines[1:stop])
    head = f"{PLAN_HEAD} of `{case.command}`:\n#   {fits(plan)}\n{shown}\n"
    return re.sub(rf"{re.escape(PLAN_HEAD)}.*?(?=^[^#])", head, text, flags=re.S | re.M)


if __name__ == "__main__":
    main()
