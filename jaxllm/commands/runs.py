"""Commands about training runs: `train`, `plan` and `diff`."""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from jaxllm.errors import MissingFileError, UserError

from .environment import join_processes, log_to_stderr, print_rich, say
from .options import AddCommand, add_json, add_processes, count

if TYPE_CHECKING:
    from jaxllm.models import Model
    from jaxllm.train import TrainConfig

OVERRIDES = "Any field of the config is an option, such as --optimizer.learning-rate 1e-4."


def add_commands(add: AddCommand) -> None:
    """Adds `train`, `plan` and `diff` to the command line."""
    _add_train(add)
    _add_plan(add)
    _add_diff(add)


def _add_train(add: AddCommand) -> None:
    train = add(
        "train",
        _train,
        "Train a model as a YAML file describes.",
        "jaxllm train configs/tiny.yaml --steps 30 --mesh.fsdp 4",
    )
    train.set_defaults(takes_overrides=True)
    train.add_argument(
        "config", nargs="?", metavar="CONFIG", help="a YAML file, such as those in configs/"
    )
    train.add_argument(
        "--resume",
        action="store_true",
        help="continue from the newest sound checkpoint of the run; without one, begin the run",
    )
    train.add_argument(
        "--resume-from",
        type=count,
        metavar="STEP",
        help="continue from the checkpoint of this step",
    )
    train.add_argument(
        "--profile",
        metavar="FIRST:LAST",
        help="profile these steps, such as 10:15, for xprof or TensorBoard",
    )
    add_processes(train)
    train.epilog = f"{OVERRIDES}\n`jaxllm train CONFIG --help` lists them.\n\n{train.epilog}"


def _add_plan(add: AddCommand) -> None:
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


def _add_diff(add: AddCommand) -> None:
    diff = add(
        "diff",
        _diff,
        "Find the first step at which two runs differ, and how.",
        "jaxllm diff runs/tiny runs/other",
    )
    diff.add_argument("run_a", metavar="RUN_A", help="the folder of a run")
    diff.add_argument("run_b", metavar="RUN_B", help="the folder of another run")
    add_json(diff, "every difference")


def _plot_path(text: str) -> str:
    """Parses the path of a plot, for argparse."""
    if not text.lower().endswith((".png", ".pdf", ".svg")):
        raise argparse.ArgumentTypeError(f"{text!r} is not a .png, .pdf or .svg file")
    return text


def _train(arguments: argparse.Namespace) -> int:
    if arguments.config is None:
        if not {"-h", "--help"} & set(arguments.overrides):
            arguments.parser.error("the following arguments are required: CONFIG")
        arguments.parser.print_help()
        return 0
    join_processes(arguments)
    import jax

    from jaxllm.distributed.agreement import check_agreement
    from jaxllm.train import train
    from jaxllm.train.config import to_dict
    from jaxllm.train.preference.reference import needs_start
    from jaxllm.train.restarts.stopping import resume_command

    log_to_stderr()
    if arguments.profile is not None:
        arguments.overrides = [*arguments.overrides, "--speed.profile", arguments.profile]
    config = read_run_config(arguments)
    options = {"resume": arguments.resume, "resume_from": arguments.resume_from}
    # What LoRA adds to, and what DPO compares with, is no part of a run's checkpoints.
    start = config.init_from
    if _resumes(config, arguments) and not needs_start(config):
        start = None
    facts = {"config": to_dict(config), "options": options, "init_from": _sample_weights(start)}
    check_agreement(facts)  # before weights are read
    model = _initial_weights(config, start)
    result = train(_with_our_names(config, model), model, **options)
    if jax.process_index() == 0:
        if result.held_out_loss is not None:
            say(f"held-out loss {result.held_out_loss:.4f} {result.unit}")
        say(f"wrote {config.output}  config.yaml  metrics.jsonl  loss.png  checkpoints/")
        if result.step < config.steps:
            say(f"stopped by SIGTERM after step {result.step} of {config.steps}, which is saved")
            say(f"continue with {resume_command(config)}")
    return 0


def _resumes(config: "TrainConfig", arguments: argparse.Namespace) -> bool:
    """Whether a run continues from a checkpoint of its own."""
    from jaxllm.train.restarts.folder_lock import run_folder
    from jaxllm.train.restarts.sound_step import find_steps

    if arguments.resume_from is not None:
        return True
    return arguments.resume and bool(find_steps(run_folder(config.output)))


def _sample_weights(start: str | None) -> dict[str, str]:
    """Returns samples of the files that a run starts from, by which processes compare theirs."""
    import jax

    from jaxllm.hub import local_path
    from jaxllm.interop.formats.source_files import sample
    from jaxllm.interop.formats.table import model_format_of

    if start is None or jax.process_count() == 1:
        return {}
    place = local_path(start)
    if place.is_file():  # such as a GGUF file, which may lie beside others
        return sample([place], place.parent)
    model_format = model_format_of(place) if place.is_dir() else None
    folder = place if model_format is None else model_format.find_step(place, None)
    return sample(folder.rglob("*"), folder)


def _initial_weights(config: "TrainConfig", start: str | None) -> "Model | None":
    """Loads the weights that a run starts from, onto its mesh."""
    from jaxllm.interop import load_pretrained
    from jaxllm.train import make_mesh
    from jaxllm.train.finetuning.start import start_dtype

    if start is None:
        return None
    mesh, dtype = make_mesh(**config.mesh.sizes), start_dtype(config)
    return load_pretrained(start, mesh=mesh, dtype=dtype, strict=config.strict, allow=config.allow)


def _with_our_names(config: "TrainConfig", model: "Model | None") -> "TrainConfig":
    """Returns the config of a run; LoRA's targets may be given under PyTorch's names."""
    from jaxllm.interop.adapters.targets import in_our_names

    optimizer = config.optimizer
    if optimizer.lora is None or model is None:
        return config
    named = dataclasses.replace(optimizer, lora=in_our_names(optimizer.lora, model))
    return dataclasses.replace(config, optimizer=named)


def read_run_config(arguments: argparse.Namespace, path: str | None = None) -> "TrainConfig":
    """Reads the config of a run, by default `arguments.config`, and applies the overrides.

    Raises:
        MissingFileError: the file does not exist, perhaps because an override stands before it.
    """
    from jaxllm.storage.paths import open_path
    from jaxllm.train import load_config

    if arguments.overrides and not open_path(arguments.config).exists():
        raise MissingFileError(
            f"{arguments.config}: No such file or directory; CONFIG comes before the options that "
            "set its fields"
        )
    path = arguments.config if path is None else path
    return load_config(path, arguments.overrides, prog=arguments.parser.prog)


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


def _diff(arguments: argparse.Namespace) -> int:
    from jaxllm.train.verify.diff import diff_runs
    from jaxllm.train.verify.diff_table import render

    diff = diff_runs(arguments.run_a, arguments.run_b)
    if arguments.json:
        print(json.dumps(diff.to_json()))
    else:
        print_rich(render(diff))
    return 0 if diff.same else 1
