"""The options of `jaxllm convert` that take the optimizer's state along."""

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from jaxllm.errors import UserError
from jaxllm.interop import OptimizerExport, load_training_state
from jaxllm.interop.formats import orbax
from jaxllm.interop.optimizer_state import parameter_order
from jaxllm.train import load_config, make_mesh, read_state, write_run

# What a run, or PyTorch's state, has nothing to do with, and what only goes with an optimizer.
NOT_OF_A_RUN = ("config", "optimizer", "dtype", "model_parallel")
NOT_INTO_A_RUN = ("optimizer_format", "step", "dtype", "model_parallel")
OF_OPTIMIZERS = ("config", "optimizer", "optimizer_format", "parameter_names")


def is_into_run(arguments: argparse.Namespace) -> bool:
    """Whether a state of PyTorch's is to become a run.

    Raises UserError with every option of `convert` that does not fit the others.
    """
    is_run = orbax.is_native(Path(arguments.source))
    if problems := list(_problems(arguments, is_run)):
        raise UserError("\n".join(problems))
    return arguments.with_optimizer and not is_run


def _problems(arguments: argparse.Namespace, is_run: bool) -> Iterator[str]:
    def given(names: tuple[str, ...]) -> list[str]:
        return [_spell(name) for name in names if getattr(arguments, name) is not None]

    if not arguments.with_optimizer:
        yield from (f"{option} is for --with-optimizer" for option in given(OF_OPTIMIZERS))
    elif is_run:
        for option in given(NOT_OF_A_RUN):
            yield f"{option} does not go with --with-optimizer and a run"
        if arguments.optimizer_format == "dcp" and arguments.parameter_names is not None:
            yield "--parameter-names is for a state_dict: dcp goes by names, in no order"
    else:
        for option in given(NOT_INTO_A_RUN):
            yield f"{option} does not go with --with-optimizer into a run"
        if arguments.to not in (None, "native"):
            yield f"--to {arguments.to}: with its optimizer, what is PyTorch's becomes a run"
        if arguments.config is None:
            yield "--with-optimizer into a run needs --config, the YAML file of the run"


def _spell(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def optimizer_of(arguments: argparse.Namespace) -> OptimizerExport:
    """The state of a run's optimizer, as it is to be written."""
    names = arguments.parameter_names
    return OptimizerExport(
        read_state(orbax.find_step(Path(arguments.source), arguments.step)),
        arguments.optimizer_format or "state_dict",
        None if names is None else parameter_order.read_names(Path(names)),
    )


def into_run(arguments: argparse.Namespace) -> int:
    """Writes the run that `train --resume` goes on with; returns the exit status."""
    folder = arguments.destination
    config = dataclasses.replace(load_config(arguments.config), output=folder)
    model, state = load_training_state(
        arguments.source,
        optimizer=arguments.optimizer,
        names=arguments.parameter_names,
        mesh=make_mesh(**dataclasses.asdict(config.mesh)),
        rules=arguments.rules,
    )
    write_run(config, model, state)
    print(f"{folder}: a run of {state.step} steps; jaxllm train {folder}/config.yaml --resume")
    return 0
