"""The optimizer options of `jaxllm convert`: checks them, and converts the optimizer state."""

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from jaxllm.errors import UserError
from jaxllm.interop import OptimizerExport, load_training_state
from jaxllm.interop.formats import orbax
from jaxllm.interop.optimizer_state import parameter_order
from jaxllm.storage.paths import is_remote
from jaxllm.train import load_config, make_mesh, read_state, write_run

from .environment import say
from .options import allowances

# Options that do not apply when a run is the source or the result, and those of optimizers only.
NOT_FROM_RUN = ("config", "optimizer", "dtype", "model_parallel")
NOT_INTO_RUN = ("optimizer_format", "step", "dtype", "model_parallel", "max_ram")
OPTIMIZER_ONLY = ("config", "optimizer", "optimizer_format", "parameter_names")


def is_into_run(arguments: argparse.Namespace) -> bool:
    """Whether the arguments ask to convert a PyTorch training state into a run.

    Raises UserError if the source is not on this machine, or one that lists every option that
    cannot be combined with the others.
    """
    if arguments.with_optimizer and is_remote(arguments.source):
        raise UserError(
            f"--with-optimizer reads a folder of this machine: copy {arguments.source} to one first"
        )
    is_run = orbax.is_native(Path(arguments.source))
    if problems := list(_problems(arguments, is_run)):
        raise UserError("\n".join(problems))
    return arguments.with_optimizer and not is_run


def _problems(arguments: argparse.Namespace, is_run: bool) -> Iterator[str]:
    def given(names: tuple[str, ...]) -> list[str]:
        return [_option(name) for name in names if getattr(arguments, name) is not None]

    if not arguments.with_optimizer:
        yield from (f"{option} needs --with-optimizer" for option in given(OPTIMIZER_ONLY))
    elif is_run:
        for option in given(NOT_FROM_RUN):
            yield f"{option} cannot be used with --with-optimizer if SOURCE is a run"
        if arguments.optimizer_format == "dcp" and arguments.parameter_names is not None:
            yield (
                "--parameter-names is for --optimizer-format state_dict: dcp identifies "
                "parameters by name, not by order"
            )
    else:
        for option in given(NOT_INTO_RUN):
            yield f"{option} cannot be used with --with-optimizer if SOURCE is a PyTorch checkpoint"
        if arguments.to not in (None, "native"):
            yield (
                f"--to {arguments.to} cannot be used with --with-optimizer if SOURCE is a PyTorch "
                "checkpoint: the result is a run"
            )
        if arguments.config is None:
            yield (
                "--with-optimizer needs --config if SOURCE is a PyTorch checkpoint: the YAML file "
                "of the run to write"
            )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def optimizer_of(arguments: argparse.Namespace) -> OptimizerExport:
    """Reads the optimizer state of a run, to be exported as the arguments ask."""
    names = arguments.parameter_names
    return OptimizerExport(
        read_state(orbax.find_step(Path(arguments.source), arguments.step)),
        arguments.optimizer_format or "state_dict",
        None if names is None else parameter_order.read_names(Path(names)),
    )


def into_run(arguments: argparse.Namespace) -> int:
    """Writes a run that `train --resume` continues; returns the exit status."""
    folder = arguments.destination
    config = dataclasses.replace(load_config(arguments.config), output=folder)
    model, state = load_training_state(
        arguments.source,
        optimizer=arguments.optimizer,
        names=arguments.parameter_names,
        mesh=make_mesh(**config.mesh.sizes),
        rules=arguments.rules,
        **allowances(arguments),
    )
    write_run(config, model, state)
    say(
        f"{folder}: a run at step {state.step}; to continue: "
        f"jaxllm train {folder}/config.yaml --resume"
    )
    return 0
