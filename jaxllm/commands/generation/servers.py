"""Servers that a model is served with, vLLM and transformers: their flags and their process."""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from jaxllm.errors import UserError

STOP_S = 30  # to end in good order, before the server is killed
POLL_S = 0.25
ENDED = "ended with status"


class Model(NamedTuple):
    """A Hugging Face folder to serve, and how."""

    folder: Path
    dtype: str | None  # None: as stored
    host: str
    port: int
    num_devices: int  # to split the matrices over


class Server(NamedTuple):
    """A server with an OpenAI-compatible interface: what it needs, and its command line."""

    name: str
    needs: tuple[str, ...]  # modules
    command: Callable[[Model], list[str]]


def _vllm(model: Model) -> list[str]:
    """Without a dtype, vLLM would turn float32 into a narrower one."""
    options = {
        "--served-model-name": model.folder.name,
        "--host": model.host,
        "--port": str(model.port),
        "--dtype": model.dtype or stored_dtype(model.folder),
        "--tensor-parallel-size": str(model.num_devices),
    }
    flags = [text for pair in options.items() for text in pair]
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model.folder), *flags]


def _transformers(model: Model) -> list[str]:
    """It calls a model as its argument, which is therefore a name in the working directory."""
    if model.num_devices > 1:
        raise UserError("--tensor-parallel needs vLLM: `transformers serve` has no such option")
    options = {"--host": model.host, "--port": str(model.port), "--dtype": model.dtype or "auto"}
    flags = [text for pair in options.items() for text in pair]
    module = "transformers.cli.transformers"
    return [sys.executable, "-m", module, "serve", model.folder.name, *flags]


# In the order of preference.
SERVERS = {
    "vllm": Server("vLLM", ("vllm",), _vllm),
    "transformers": Server(
        "transformers serve",
        ("transformers", "torch", "fastapi", "uvicorn", "openai"),
        _transformers,
    ),
}


def stored_dtype(folder: Path) -> str:
    """Returns the dtype that a folder's config names, "auto" if it names none."""
    from jaxllm.interop.loading.checkpoint_dir import read_json

    config = read_json(folder / "config.json")
    return str(config.get("dtype") or config.get("torch_dtype") or "auto")


def find_server(wanted: str | None) -> Server:
    """Returns the server of this name, or the first that is installed.

    Raises UserError if it is not installed.
    """
    candidates = SERVERS if wanted is None else {wanted: SERVERS[wanted]}
    for server in candidates.values():
        if all(importlib.util.find_spec(module) for module in server.needs):
            return server
    if wanted == "vllm":
        raise UserError("vLLM is not installed: pip install vllm")
    named = "" if wanted == "transformers" else "vllm (GPU, TPU), or pip install "
    raise UserError(f"nothing that serves is installed: pip install {named}'jaxllm[serve]'")


def check_port(host: str, port: int) -> None:
    """Raises UserError if the port is in use, or the address is not one of this machine."""
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with socket.socket(family, kind, protocol) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tried.bind(address)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"--host {host} --port {port} cannot be listened on: {reason}; give another --port"
        ) from None


def run_server(command: Sequence[str], model: Model, ready: Callable[[], None]) -> int:
    """Runs a server until it ends, and returns its status; calls `ready` when it answers.

    Ctrl-C and SIGTERM end the server too: first in good order, then by force.
    """
    child = subprocess.Popen(command, cwd=model.folder.parent, start_new_session=True)
    try:
        with _sigterm_as_interrupt():
            is_ready = False
            while (status := child.poll()) is None:
                if not is_ready and (is_ready := _answers(model)):
                    ready()
                time.sleep(POLL_S)
            return status
    finally:
        _stop(child)


def _answers(model: Model) -> bool:
    host = "127.0.0.1" if model.host == "0.0.0.0" else model.host
    url = f"http://{f'[{host}]' if ':' in host else host}:{model.port}/health"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


def _stop(child: subprocess.Popen) -> None:
    """Ends a server and the processes that it has started."""
    for number, seconds in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, None)):
        if child.poll() is not None and number != signal.SIGKILL:
            continue
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(seconds)


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """While the context lasts, SIGTERM raises KeyboardInterrupt, as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt("terminated")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
