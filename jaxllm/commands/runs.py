"""Commands about training runs: `train` and `diff`."""

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from jaxllm.errors import MissingFileError

from .environment import join_processes, log_to_stderr, print_rich, say
from .options import AddCommand, add_json, add_processes, count

if TYPE_CHECKING:
    from jaxllm.models import Model
    from jaxllm.train import TrainConfig

OVERRIDES = "Any field of the config is an option, such as --optimizer.learning-rate 1e-4."


def add_commands(add: AddCommand) -> None:
    """Adds `train` and `diff` to the command line."""
    _add_train(add)
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


def _train(arguments: argparse.Namespace) -> int:
    if arguments.config is None:
        if not {"-h", "--help"} & set(arguments.overrides):
            arguments.parser.error("the following arguments are required: CONFIG")
        arguments.parser.print_help()
        return 0
    log_to_stderr()
    if arguments.profile is not None:
        arguments.overrides = [*arguments.overrides, "--speed.profile", arguments.profile]
    if {"-h", "--help"} & set(arguments.overrides):  # soon, without what a run needs
        read_run_config(arguments)
    join_processes(arguments)
    import jax

    from jaxllm.distributed.agreement import check_agreement
    from jaxllm.interop import export_step
    from jaxllm.train import train
    from jaxllm.train.config import to_dict
    from jaxllm.train.preference.reference import needs_start
    from jaxllm.train.restarts.stopping import resume_command

    config = read_run_config(arguments)
    options = {"resume": arguments.resume, "resume_from": arguments.resume_from}
    # What LoRA adds to, and what DPO compares with, is no part of a run's checkpoints.
    start = config.init_from
    if _resumes(config, arguments) and not needs_start(config):
        start = None
    facts = {"config": to_dict(config), "options": options, "init_from": _sample_weights(start)}
    check_agreement(facts)  # before weights are read
    config, model = _with_weights(config, start)
    result = train(config, model, **options, export=export_step)
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


def _with_weights(config: "TrainConfig", start: str | None) -> "tuple[TrainConfig, Model | None]":
    """Loads the weights that a run starts from, onto its mesh, also those of an adapter.

    LoRA's settings in the config get our names; those of an adapter are taken if it has none.
    """
    from jaxllm.hub import local_path
    from jaxllm.interop import load_pretrained
    from jaxllm.interop.adapters.continuing import load_start
    from jaxllm.interop.adapters.merging import is_adapter
    from jaxllm.interop.adapters.targets import in_our_names
    from jaxllm.train import make_mesh
    from jaxllm.train.finetuning.start import start_dtype

    if start is None:
        return config, None
    mesh, lora = make_mesh(**config.mesh.sizes), config.optimizer.lora
    options = {"mesh": mesh, "strict": config.strict, "allow": config.allow}
    if is_adapter(local_path(start)):
        model, lora = load_start(start, lora, **options)
    else:
        model = load_pretrained(start, dtype=start_dtype(config), **options)
        lora = None if lora is None else in_our_names(lora, model)
    optimizer = dataclasses.replace(config.optimizer, lora=lora)
    return dataclasses.replace(config, optimizer=optimizer), model


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


def _diff(arguments: argparse.Namespace) -> int:
    from jaxllm.train.verify.diff import diff_runs
    from jaxllm.train.verify.diff_table import render

    diff = diff_runs(arguments.run_a, arguments.run_b)
    if arguments.json:
        print(json.dumps(diff.to_json()))
    else:
        print_rich(render(diff))
    return 0 if diff.same else 1
