"""The process that a command runs in: environment variables, log, terminal and other processes."""

import logging
import os
from typing import TYPE_CHECKING

from jaxllm.errors import UserError

if TYPE_CHECKING:
    from rich.console import RenderableType

COORDINATOR, COUNT, ID = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
VIRTUAL_DEVICES = "JAX_NUM_CPU_DEVICES"


def set_environment() -> None:
    """Gives virtual devices enough threads, and silences the libraries below ours.

    Raises UserError if the number of virtual devices is not one.
    """
    if devices := os.environ.get(VIRTUAL_DEVICES):
        if not devices.isdigit():
            raise UserError(f"{VIRTUAL_DEVICES}={devices!r} is not a whole number")
        # XLA's own default starves collectives; see `train.mesh.use_virtual_devices`.
        os.environ.setdefault("NPROC", str(8 * int(devices)))
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("absl").setLevel(logging.ERROR)


def log_to_stderr() -> None:
    """Prints the progress messages of jaxllm on stderr, without those of its dependencies."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("jaxllm")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def print_rich(renderable: "RenderableType") -> None:
    """Prints a table or text of rich on stdout. Raises BrokenPipeError if nobody reads it."""
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would exit with status 1, as a failed check does

    Terminal().print(renderable)


def join_processes() -> None:
    """Makes this one of the processes that meet at `JAX_COORDINATOR_ADDRESS`, if it is set.

    `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` say how many there are and which one this is; without
    them jax asks the cluster (Slurm, Open MPI, Kubernetes, Cloud TPU). Call it before any device
    is used.

    Raises:
        UserError: a variable is not a number, or the processes cannot be joined.
    """
    if not os.environ.get(COORDINATOR):  # jax reads its value itself
        return
    import jax

    if jax.distributed.is_initialized():
        return
    given = {name: os.environ[name] for name in (COUNT, ID) if os.environ.get(name)}
    if wrong := [f"{name}={text!r}" for name, text in given.items() if not text.isdigit()]:
        raise UserError(f"{', '.join(wrong)}: {COORDINATOR} is set, so whole numbers are expected")
    count, own = (int(given[name]) if name in given else None for name in (COUNT, ID))
    try:
        jax.distributed.initialize(num_processes=count, process_id=own)
    except (ValueError, RuntimeError) as error:  # jax raises either for what is not set
        raise UserError(f"{COORDINATOR} is set, but jax cannot join: {error}") from error
