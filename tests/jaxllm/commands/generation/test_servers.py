"""Servers of others: their flags, their ports, and their ends."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from tiny import random_model

from jaxllm.commands.generation import servers
from jaxllm.commands.generation.servers import SERVERS, Model, check_port, find_server
from jaxllm.errors import UserError
from jaxllm.interop import save_pretrained


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_vllm_gets_the_stored_dtype_which_it_would_narrow(tmp_path):
    folder = tmp_path / "llama"
    save_pretrained(random_model(num_layers=1), folder)
    model = Model(folder, None, "localhost", 8001, 4)
    command = SERVERS["vllm"].command(model)
    assert command[3:5] == ["serve", str(folder)]
    assert command[5:] == [
        *("--served-model-name", "llama", "--host", "localhost", "--port", "8001"),
        *("--dtype", "float32", "--tensor-parallel-size", "4"),
    ]
    narrow = SERVERS["vllm"].command(model._replace(dtype="bfloat16"))
    assert narrow[narrow.index("--dtype") + 1] == "bfloat16"


def test_transformers_serves_a_name_and_splits_nothing():
    model = Model(Path("/models/llama"), None, "::1", 8001, 1)
    command = SERVERS["transformers"].command(model)
    assert command[3:] == [
        *("serve", "llama", "--host", "::1", "--port", "8001", "--dtype", "auto"),
    ]
    with pytest.raises(UserError, match="--tensor-parallel needs vLLM"):
        SERVERS["transformers"].command(model._replace(num_devices=2))


def test_the_first_server_that_is_installed_is_taken(monkeypatch):
    installed = {"vllm", "transformers", "torch", "fastapi", "uvicorn", "openai"}
    monkeypatch.setattr(servers.importlib.util, "find_spec", lambda name: name in installed)
    assert find_server(None).name == "vLLM"
    installed.remove("vllm")
    assert find_server(None).name == "transformers serve"
    with pytest.raises(UserError, match=r"^vLLM is not installed: pip install vllm$"):
        find_server("vllm")
    installed.remove("uvicorn")
    for wanted in (None, "transformers"):
        with pytest.raises(
            UserError, match=r"nothing that serves is installed: pip install .*serve"
        ):
            find_server(wanted)


def test_a_port_in_use_is_one_line():
    port = free_port()
    check_port("127.0.0.1", port)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        for host in ("127.0.0.1", "localhost", "0.0.0.0"):
            with pytest.raises(UserError, match="in use; give another --port") as error:
                check_port(host, port)
            assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"--host 192\.0\.2\.1 --port"):
        check_port("192.0.2.1", port)


HEALTHY = """
import http.server, os, pathlib, signal, sys

class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path("pid").write_text(str(os.getpid()))
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answers).serve_forever()
"""
PARENT = """
import pathlib, sys
from jaxllm.commands.generation import servers
servers.STOP_S = 0.5
port, kind = int(sys.argv[1]), sys.argv[2]
model = servers.Model(pathlib.Path.cwd() / "model", None, "127.0.0.1", port, 1)
command = [sys.executable, "server.py", str(port), kind]
servers.run_server(command, model, lambda: pathlib.Path("ready").write_text(""))
"""


@pytest.mark.parametrize(
    ("number", "kind"),
    [(signal.SIGINT, "kind"), (signal.SIGTERM, "kind"), (signal.SIGINT, "stubborn")],
)
def test_signals_end_the_server_too(tmp_path, number, kind):
    (tmp_path / "server.py").write_text(textwrap.dedent(HEALTHY))
    command = [sys.executable, "-c", PARENT, str(free_port()), kind]
    parent = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "ready").exists():
        assert parent.poll() is None
        time.sleep(0.05)
    child = int((tmp_path / "pid").read_text())
    parent.send_signal(number)
    _, said = parent.communicate(timeout=60)
    assert "KeyboardInterrupt" in said
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_the_status_of_a_server_that_fails_is_returned(tmp_path):
    model = Model(tmp_path / "model", None, "127.0.0.1", free_port(), 1)
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    assert servers.run_server(command, model, lambda: pytest.fail("it never answered")) == 3
