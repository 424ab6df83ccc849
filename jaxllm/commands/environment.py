"""Process setup for commands: environment variables, logging, terminal output, multi-host."""

import argparse
import io
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

from jaxllm import THREADS_PER_DEVICE
from jaxllm.errors import UserError, first_line, on_one_line
from jaxllm.untrusted.printable import shown

from .failures import WRONG_USE, complain, report_failure
from .options import is_whole_number

if TYPE_CHECKING:
    from rich.console import RenderableType

JOIN_S = 300  # for all processes to have started
GRACE_S = 60  # after which jax aborts a process that still waits
HEARTBEAT_S = 20  # without a sign of life, a process is taken for dead
COORDINATOR, COUNT, ID = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
VIRTUAL_DEVICES = "JAX_NUM_CPU_DEVICES"


def open_streams() -> None:
    """Discards what is written to a closed stdout or stderr; stdout escapes what it cannot show.

    A closed stream is None in Python, and the next file that is opened would get its number.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def set_environment() -> None:
    """Gives virtual devices enough threads and silences dependencies. Call this before JAX loads.

    Raises UserError if `JAX_NUM_CPU_DEVICES` is not a whole number of at least 1.
    """
    if devices := os.environ.get(VIRTUAL_DEVICES):
        if not is_whole_number(devices, 1):
            raise UserError(f"{VIRTUAL_DEVICES}={devices!r} is not a whole number of at least 1")
        # With XLA's default, collectives starve; see `train.mesh.use_virtual_devices`.
        os.environ.setdefault("NPROC", str(THREADS_PER_DEVICE * int(devices)))
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # unset, it warns when processes start
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Orbax logs the traceback of each error besides raising it.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # For warnings of commands without a log, before a dependency sets up a form of its own.
    logging.basicConfig(handlers=[_on_stderr()])


def keep_programs() -> None:
    """Keeps compiled programs in a folder, unless `JAX_COMPILATION_CACHE_DIR` names one.

    A second run of a command then starts in a fraction of the time.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        import jax

        from jaxllm.storage.download import cache_folder

        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


class _Printable(logging.Formatter):
    """Formats messages, which may name tensors and files, as text that cannot act on a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the message, in which no path begins a line of its own."""
        if isinstance(record.args, tuple):
            record.args = tuple(
                on_one_line(value) if isinstance(value, Path) else value for value in record.args
            )
        return shown(super().format(record))


def log_to_stderr() -> None:
    """Prints the log messages of jaxllm, but not of its dependencies, on stderr."""
    logger = logging.getLogger("jaxllm")
    logger.addHandler(_on_stderr())
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _on_stderr() -> logging.Handler:
    handler = logging.StreamHandler()
    handler.setFormatter(_Printable("%(message)s"))
    return handler


def say(text: object, stream: TextIO | None = None) -> None:
    """Prints a text, in which nothing acts on a terminal, on stdout or another stream."""
    print(shown(str(text)), file=stream)


def print_rich(renderable: "RenderableType") -> None:
    """Prints a rich table or text on stdout. Raises BrokenPipeError if stdout is closed."""
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would exit with status 1, the status of a failed check

    Terminal().print(renderable)


@contextmanager
def progress_bar() -> Iterator["Callable[[str, int | None], None] | None"]:
    """Shows a progress bar on stderr while the context lasts, if that is a terminal.

    Yields:
        A callback that takes what is done next and the number of such steps, which may be unknown;
        None without a terminal.
    """
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        progress.TimeElapsedColumn(),
        progress.BarColumn(20),
        progress.TextColumn("{task.description}"),
    )
    with progress.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(step: str, total: int | None) -> None:
            known = bar.tasks[task].total is not None
            bar.update(task, description=step, total=total, advance=int(known))

        yield show


@contextmanager
def comparison_progress() -> Iterator[None]:
    """Shows the runs of a comparison on stderr while the context lasts, if that is a terminal."""
    from jaxllm.interop.parity.progress import following

    with progress_bar() as show, nullcontext() if show is None else following(show):
        yield


class _Place(NamedTuple):
    """Where the processes of a job meet, how many there are and which one this is, as texts."""

    coordinator: str
    size: str
    rank: str

    def number(self, name: str, text: str) -> int | None:
        """Returns a number, or None if it is not given. Raises UserError for another text."""
        if text and not is_whole_number(text, 0):
            raise UserError(f"{name}={text!r}: must be a whole number")
        return int(text) if text else None


def join_processes(arguments: argparse.Namespace | None = None, timeout_s: int = JOIN_S) -> None:
    """Joins a multi-host job, if there is one; then a process that fails ends all of them.

    `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` say where the processes
    meet, how many there are and which one this is; what is missing, jax asks the cluster for
    (Slurm, Open MPI, Kubernetes, Cloud TPU). `JAX_NUM_PROCESSES=1` runs this process alone. Call
    this before any device is used.

    Args:
        arguments: the options of `add_processes`, which count before the variables.
        timeout_s: seconds to wait for the other processes.

    Raises:
        UserError: a variable is not a whole number, or this process cannot join; or it is one of
            several, as its environment says, that nothing tells where to meet.
    """
    place = _find_place(arguments)
    if not _is_in_a_job(place):
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # of a lost process, one line says enough
    import jax

    if jax.distributed.is_initialized():
        return
    count, own = place.number(COUNT, place.size), place.number(ID, place.rank)
    try:
        with _ending_after(timeout_s, place):
            jax.distributed.initialize(
                place.coordinator or None,
                num_processes=count,
                process_id=own,
                initialization_timeout=timeout_s + GRACE_S,
                heartbeat_timeout_seconds=HEARTBEAT_S,
            )
    except (ValueError, RuntimeError, LookupError, OSError) as error:  # for missing settings
        raise UserError(
            f"this process cannot join the others of its job: {first_line(error)}"
        ) from error
    from jaxllm.distributed.failing import watch

    watch(lambda error: report_failure(error, debug="--debug" in sys.argv))


def _find_place(arguments: argparse.Namespace | None) -> _Place:
    """Returns the options of a command and, where they are not given, the variables."""
    given = (
        getattr(arguments, name, None) for name in ("coordinator", "num_processes", "process_id")
    )
    return _Place(
        *(
            os.environ.get(variable, "") if value is None else str(value)
            for variable, value in zip((COORDINATOR, COUNT, ID), given, strict=True)
        )
    )


@contextmanager
def _ending_after(timeout_s: int, place: _Place) -> Iterator[None]:
    """Ends this process with one line if the context lasts longer; jax itself would abort.

    Whatever waits in the context cannot be interrupted.
    """

    def end() -> None:
        complain(
            f"process {place.rank or '?'} of {place.size or '?'} has waited {timeout_s} s at "
            f"{place.coordinator or 'the address that the scheduler gives'} for the others: start "
            "all of them, with the same address and a number of their own; its port must be open "
            "between the hosts"
        )
        os._exit(WRONG_USE)

    timer = threading.Timer(timeout_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _is_in_a_job(place: _Place) -> bool:
    """Whether this process is one of several.

    Raises UserError if it is, but neither the user nor jax knows where they meet.
    """
    if place.coordinator:
        return True
    if place.size == "1":
        return False
    from jaxllm.distributed.schedulers import find_job, is_known_to_jax

    job = find_job()
    if job is None and not place.size and not place.rank:
        return False
    if is_known_to_jax():
        return True
    if job is not None:
        raise UserError(
            f"{job.launcher} has started this process as one of several "
            f"({', '.join(job.variables)}), but jax does not know where they meet: "
            f"set {COORDINATOR}=HOST:PORT, {COUNT} and {ID} (docs/pods.md), or {COUNT}=1 to run "
            "each process alone"
        )
    numbers = {COUNT: place.size, ID: place.rank}
    given = " and ".join(f"{name}={text}" for name, text in numbers.items() if text)
    raise UserError(
        f"{given}, but nothing says where the processes meet: set {COORDINATOR}=HOST:PORT, or give "
        f"--coordinator; {COUNT}=1 runs this process alone"
    )
