"""The command `plan`: says what a run needs before it begins."""

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxllm.commands.environment import log_to_stderr
from jaxllm.commands.options import AddCommand, add_json, count
from jaxllm.commands.runs import OVERRIDES, read_run_config
from jaxllm.errors import UserError


def add_commands(add: AddCommand) -> None:
    """Adds `plan` to the command line."""
    plan = add(
        "plan",
        _plan,
        "Say what a run needs: FLOPs, memory, communication, time; search a layout.",
        "jaxllm plan configs/llama3_8b_v5p.yaml --topology v5p:2x2x4",
    )
    plan.set_defaults(takes_overrides=True)
    plan.epilog = f"{OVERRIDES}\n\n{plan.epilog}"
    plan.add_argument(
        "config",
        metavar="CONFIG",
        help="a YAML file, such as those in configs/, or a folder with a model's config.json",
    )
    plan.add_argument(
        "--topology",
        metavar="DEVICES",
        help="devices that need not be there: v5p:4x4x4, v6e:8x8, v5e:4x4, h100:8, h200:8, a100:8",
    )
    plan.add_argument(
        "--search",
        action="store_true",
        help="try meshes, remat and microbatches, and list what fits, the fastest first",
    )
    plan.add_argument(
        "--analytic",
        action="store_true",
        help="use the analytic model, also where the compiler (extra `plan`) is installed",
    )
    plan.add_argument(
        "--compile",
        type=count,
        metavar="N",
        help="with --search: let the compiler check the best N layouts (minutes for each)",
    )
    plan.add_argument("--hlo", metavar="FILE", help="write the compiled program to a file")
    plan.add_argument(
        "--plot",
        metavar="FILE",
        type=_plot_path,
        help="plot the learning-rate schedule to a .png, .pdf or .svg file",
    )
    add_json(plan, "the figures")


def _plot_path(text: str) -> str:
    """Parses the path of a plot, for argparse."""
    if not text.lower().endswith((".png", ".pdf", ".svg")):
        raise argparse.ArgumentTypeError(f"{text!r} is not a .png, .pdf or .svg file")
    return text


def _plan(arguments: argparse.Namespace) -> int:
    import jax

    jax.config.update("jax_platforms", "cpu")  # nothing is computed, so no accelerator is taken
    from jaxllm.train.cost import estimate_cost
    from jaxllm.train.monitoring.plot import plot_schedule
    from jaxllm.train.planning.report import Options, report
    from jaxllm.train.planning.topology import parse_topology

    log_to_stderr()
    topology = parse_topology(arguments.topology) if arguments.topology else None
    with _config_file(arguments.config, topology.size if topology else 1) as path:
        config = read_run_config(arguments, path)
    if arguments.plot:
        plot_schedule(config.optimizer, config.steps, arguments.plot)
    chosen = {name: getattr(arguments, name) for name in Options._fields}
    if topology is None:
        if given := [f"--{name}" for name, value in chosen.items() if value]:
            raise UserError(f"{', '.join(given)}: only with --topology")
        cost = estimate_cost(config)
        print(json.dumps(cost._asdict()) if arguments.json else cost)
        return 0
    found = report(config, topology, Options(**chosen))
    print(json.dumps(found.data) if arguments.json else found.text)
    return 0 if found.fits else 1


@contextmanager
def _config_file(given: str, devices: int) -> Iterator[str]:
    """Yields the file of a run: as given, that of a run's folder, or one for a model's folder.

    The run of a model takes one sequence for each device, of at most 4,096 tokens, in bfloat16
    with full rematerialization, and its parameters are split over all devices.
    """
    from jaxllm.config import to_dict
    from jaxllm.hub import local_path
    from jaxllm.storage.download import download_small
    from jaxllm.storage.paths import is_remote

    place = download_small(given) if is_remote(given) else Path(given)
    own = place / "config.yaml"
    if own.is_file() or not (place.is_dir() or given.startswith("hf://")):
        yield str(own if own.is_file() else place)
        return
    from jaxllm.interop.loading.checkpoint import read_model_config

    folder = local_path(given) if given.startswith("hf://") else place
    longest = min(getattr(model := read_model_config(folder), "max_len", 4096), 4096)
    run = {
        **{"output": f"runs/{folder.name}", "steps": 1000, "batch_size": devices},
        **{"seq_len": longest, "mesh": {"fsdp": devices}, "dtype": "bfloat16", "remat": "full"},
    }
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, f"{folder.name}.yaml")
        path.write_text(json.dumps(run | {"model": to_dict(model)}))  # JSON is YAML
        yield str(path)
