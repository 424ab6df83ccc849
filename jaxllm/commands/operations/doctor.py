"""The command `doctor`: whether the processes of a job fit together, before a run needs them."""

import argparse
import dataclasses
import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from jaxllm.commands.environment import join_processes, log_to_stderr, print_rich, say
from jaxllm.commands.failures import complain
from jaxllm.commands.options import AddCommand, add_count, add_json, add_processes
from jaxllm.errors import UserError, first_line

if TYPE_CHECKING:
    from rich.table import Table

    from jaxllm.distributed.collective import Timed
    from jaxllm.distributed.host_facts import HostFacts
    from jaxllm.train import TrainConfig

MIB, GIB = 2**20, 2**30


def add_commands(add: AddCommand) -> None:
    """Adds `doctor` to the command line."""
    doctor = add(
        "doctor",
        _doctor,
        "Check hosts before a run: devices, versions, memory, clocks, the run's folder.",
        "jaxllm doctor run.yaml",
    )
    doctor.set_defaults(takes_overrides=True)
    doctor.add_argument(
        "config", nargs="?", metavar="CONFIG", help="the run to check the mesh, folder and data of"
    )
    add_processes(doctor)
    add_count(doctor, "--timeout", 60, "seconds to wait for the other processes", "S")
    add_count(doctor, "--size", 16, "size of the timed all-reduce", "MIB")
    add_json(doctor, "the facts")


def _doctor(arguments: argparse.Namespace) -> int:
    log_to_stderr()
    join_processes(arguments, timeout_s=arguments.timeout)
    import jax

    from jaxllm.distributed.diagnosis import find_problems
    from jaxllm.distributed.host_facts import HostFacts

    jax.devices()  # finds those of all processes, so each must look before it may wait for another
    own = json.dumps(dataclasses.asdict(_examine(arguments)))
    found = [HostFacts(**json.loads(text)) for text in _exchange("facts", own, arguments)]
    problems = find_problems(found)
    fits = len({each.num_devices for each in found}) == 1
    timed = _time_collective(arguments.size) if fits else None
    if jax.process_index() == 0:
        if arguments.json:
            print(json.dumps(_to_json(found, problems, timed)))
        else:
            _print(found, timed)
            complain("\n".join(problems) if problems else "")
    return 1 if problems else 0


def _exchange(name: str, text: str, arguments: argparse.Namespace) -> list[str]:
    """Returns the text of every process; each must call this, whatever has failed in it."""
    from jaxllm.distributed.coordinator import exchange_texts

    try:
        return exchange_texts(f"doctor/{name}", text, arguments.timeout)
    except TimeoutError as error:
        raise UserError(f"{error}; see the log of that process") from None


def _examine(arguments: argparse.Namespace) -> "HostFacts":
    """Returns the facts about this process, for the run in the config if one is given."""
    from jaxllm.commands.runs import read_run_config
    from jaxllm.distributed.host_facts import collect_facts, coordinator_address

    if arguments.config is None and arguments.overrides:
        raise UserError(f"{arguments.overrides[0]} sets a field of CONFIG, but none is given")
    problems: list[str] = []
    config, files, rows = None, None, []
    with _noting(problems):
        config = None if arguments.config is None else read_run_config(arguments)
    seen = _sees_folder(config, problems, arguments)
    if config is not None:
        files = _data_files(config, problems)
        with _noting(problems):
            rows = _own_rows(config)
    _exchange("clock", "", arguments)  # so that the clocks are read at the same time
    return collect_facts(
        coordinator=coordinator_address(),
        rows=rows,
        sees_folder=seen,
        files=files,
        problem="\n".join(problems) or None,
    )


@contextmanager
def _noting(problems: list[str]) -> Iterator[None]:
    """Context whose error becomes one of the problems."""
    try:
        yield
    except (UserError, OSError) as error:
        problems.append(str(error))


def _own_rows(config: "TrainConfig") -> list[int]:
    from jaxllm.train.data.placement import own_rows
    from jaxllm.train.setup import make_run_mesh

    return own_rows(make_run_mesh(config), config.batch_size).tolist()


def _sees_folder(
    config: "TrainConfig | None", problems: list[str], arguments: argparse.Namespace
) -> bool | None:
    """Whether this process sees the file that process 0 writes into the run's folder."""
    import jax

    from jaxllm.distributed.host_facts import sees_folder
    from jaxllm.train.restarts.folder_lock import run_folder

    folder, nonce, made = None, "", []
    with _noting(problems):
        folder = None if config is None else run_folder(config.output)
    if folder is not None and jax.process_index() == 0:
        with _noting(problems):
            made = _missing_folders(folder)
            nonce = _write_probe(folder)
    shared = _exchange("nonce", nonce, arguments)[0]
    seen = sees_folder(folder, shared) if folder is not None and shared else None
    _exchange("folder", "", arguments)
    if made or nonce:
        _remove_probe(folder, nonce, made)
    return seen


def _missing_folders(folder: Any) -> list[Any]:
    """Returns the folders that are created with this one, the innermost first."""
    from jaxllm.storage.paths import is_remote

    if is_remote(folder):  # an object store has no folders
        return []
    return [each for each in (folder, *folder.parents) if not each.exists()]


def _write_probe(folder: Any) -> str:
    """Writes a file into the run's folder; returns what is in it."""
    from jaxllm.distributed.host_facts import probe_name

    nonce = secrets.token_hex(8)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / probe_name(nonce)).write_text(nonce)
    except Exception as error:  # of any class on an object store
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{folder} cannot be written: {reason}") from None
    return nonce


def _remove_probe(folder: Any, nonce: str, made: Sequence[Any]) -> None:
    from jaxllm.distributed.host_facts import probe_name

    with suppress(Exception):  # nothing was written; of any class on an object store
        (folder / probe_name(nonce)).unlink(missing_ok=True)
        for each in made:
            each.rmdir()


def _data_files(config: "TrainConfig", problems: list[str]) -> dict[str, int]:
    """Returns the files that the data of a run name, and their sizes in bytes."""
    from jaxllm.train.data.files import find_files

    files: dict[str, int] = {}
    for given in (
        getattr(config.data, name, None) for name in ("text", "chat", "pairs", "vectors")
    ):
        for pattern in [given] if isinstance(given, str) else given or ():
            with _noting(problems):
                files |= find_files([pattern])
    return files


def _time_collective(size: int) -> "Timed":
    from jaxllm.distributed.collective import time_all_reduce

    return time_all_reduce(size * MIB)


def _print(facts: "Sequence[HostFacts]", timed: "Timed | None") -> None:
    """Prints a table with a row for each process, and lines about all of them."""
    first = facts[0]
    print_rich(_table(facts))
    versions = {name: first.versions.get(name) for name in _SHOWN if name in first.versions}
    lines = {
        "coordinator": first.coordinator or "none: one process",
        "versions": "  ".join(f"{name} {found}" for name, found in versions.items()),
        "clocks": f"within {max(f.clock for f in facts) - min(f.clock for f in facts):.2f} s",
    }
    if first.sees_folder is not None:
        lines["folder"] = f"seen by {sum(bool(f.sees_folder) for f in facts)} of {len(facts)}"
    if timed is not None and timed.num_devices > 1:
        lines["all-reduce"] = (
            f"{timed.num_bytes / MIB:.0f} MiB over {timed.num_devices} devices in "
            f"{timed.seconds * 1e3:.2f} ms: {timed.bus_bandwidth / 1e9:.2f} GB/s per device"
        )
    for name, text in lines.items():
        say(f"{name:<13}{text}")


_SHOWN = ("python", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "jaxllm")


def _table(facts: "Sequence[HostFacts]") -> "Table":
    from rich.table import Table

    columns: dict[str, Callable[[HostFacts], str]] = {
        "process": lambda each: str(each.process),
        "host": lambda each: each.host,
        "devices": lambda each: f"{each.num_devices} x {each.device_kind}",
    }
    if any(each.device_bytes for each in facts):  # a CPU does not tell
        columns["device memory"] = lambda each: _gib(each.device_bytes)
    columns["host memory"] = lambda each: _gib(each.host_bytes)
    columns["free"] = lambda each: _gib(each.host_free_bytes)
    if any(each.rows for each in facts):
        columns["rows of a batch"] = lambda each: _ranges(each.rows)
    table = Table(*columns)
    for each in facts:
        table.add_row(*(cell(each) for cell in columns.values()))
    return table


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / GIB:.1f} GiB"


def _ranges(rows: Sequence[int]) -> str:
    """Returns numbers in order as ranges, such as `0-3, 8-11`."""
    found: list[list[int]] = []
    for row in rows:
        if found and row == found[-1][1] + 1:
            found[-1][1] = row
        else:
            found.append([row, row])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def _to_json(
    facts: "Sequence[HostFacts]", problems: Sequence[str], timed: "Timed | None"
) -> dict[str, Any]:
    collective = None if timed is None else timed._asdict() | {"bus": timed.bus_bandwidth}
    return {
        "processes": [dataclasses.asdict(each) for each in facts],
        "problems": problems,
        "all_reduce": collective,
    }
