"""The command `serve`: serves a model with vLLM or `transformers serve`."""

import argparse
import contextlib
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jaxllm.commands.environment import say
from jaxllm.commands.options import (
    CHECKPOINT,
    MAX_RAM,
    AddCommand,
    add_count,
    add_dtype,
    add_max_ram,
    add_reading,
    add_step,
    allowances,
)
from jaxllm.errors import UserError
from jaxllm.hub import local_path

from .servers import ENDED, SERVERS, Model, Server, check_port, find_server, run_server


def add_commands(add: AddCommand) -> None:
    """Adds `serve` to the command line."""
    serve = add(
        "serve",
        _serve,
        "Serve a model over HTTP with vLLM or `transformers serve`.",
        "jaxllm serve runs/tiny --port 8000",
    )
    serve.add_argument("path", metavar="MODEL", help=CHECKPOINT)
    serve.add_argument(
        "--host",
        default="localhost",
        help="address to listen on; 0.0.0.0 for all, which anyone who reaches it may use "
        "(default: %(default)s)",
    )
    add_count(serve, "--port", 8000, "port to listen on")
    serve.add_argument(
        "--with",
        dest="server",
        choices=tuple(SERVERS),
        help="%(choices)s (default: the first that is installed)",
    )
    add_count(serve, "--tensor-parallel", 1, "devices to split the matrices over, with vLLM")
    serve.add_argument(
        "--server-options",
        default="",
        metavar="TEXT",
        help="more options for the server, as in --server-options='--max-model-len 4096'",
    )
    serve.add_argument(
        "--export",
        metavar="FOLDER",
        help="keep the export in this new folder, whose name is that of the model (default: a "
        "temporary folder); Hugging Face folders are served where they are",
    )
    add_dtype(serve)
    add_step(serve)
    add_max_ram(serve)
    add_reading(serve)


def _serve(arguments: argparse.Namespace) -> int:
    server = find_server(arguments.server)
    options = shlex.split(arguments.server_options)
    check_port(arguments.host, arguments.port)
    with _exported(arguments) as folder:
        place = arguments.host, arguments.port, arguments.tensor_parallel
        model = Model(folder, arguments.dtype, *place)
        command = [*server.command(model), *options]
        status = run_server(command, model, lambda: _announce(server, model))
    raise UserError(f"{server.name} {ENDED} {status}; what it has written says why")


def _announce(server: Server, model: Model) -> None:
    say(
        f"{model.folder.name} is served at http://{model.host}:{model.port}/v1 by {server.name}; "
        "Ctrl-C ends it",
        sys.stderr,
    )


@contextlib.contextmanager
def _exported(arguments: argparse.Namespace) -> Iterator[Path]:
    """Yields a Hugging Face folder with the model: its own, or one that it is exported to."""
    from jaxllm.interop import convert

    path = local_path(arguments.path).resolve()
    if _is_servable(path, arguments):
        if arguments.export is not None:
            raise UserError(f"--export: {path} is a Hugging Face folder, which is served as it is")
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="jaxllm-serve-") as temporary:
        folder = Path(arguments.export or Path(temporary) / path.stem).resolve()
        say(f"writing {folder}", sys.stderr)
        convert(
            path,
            folder,
            to="hf",
            dtype=arguments.dtype,
            step=arguments.step,
            max_ram=arguments.max_ram or MAX_RAM,
            rules=arguments.rules,
            **allowances(arguments),
        )
        yield folder


def _is_servable(path: Path, arguments: argparse.Namespace) -> bool:
    """Whether a folder is what the servers read. Raises CheckpointError if it is no checkpoint."""
    from jaxllm.interop.formats.table import model_format_of
    from jaxllm.interop.loading.checkpoint_dir import HF, read_family

    is_run = (path / "config.yaml").is_file()
    if not path.is_dir() or is_run or model_format_of(path):
        return False
    # What the servers know nothing of is applied, or refused, by the export.
    if arguments.rules or arguments.allow or not arguments.strict or arguments.step is not None:
        return False
    return read_family(path)[0].format == HF
