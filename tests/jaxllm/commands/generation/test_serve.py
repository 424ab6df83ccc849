"""`jaxllm serve`: an export is served, and answers as our own generation does."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import random_model
from tokenizer_kinds import save_tokenizer

from jaxllm.cli import main
from jaxllm.generation import generate
from jaxllm.interop import load_pretrained, save_pretrained
from jaxllm.tokenization import load_tokenizer
from jaxllm.tokenization.chat import render_chat

pytestmark = pytest.mark.torch  # `transformers serve` needs it
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}<s>"
MESSAGES = [{"role": "user", "content": "the cat"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A native checkpoint with a tokenizer of bytes and a chat template."""
    folder = tmp_path_factory.mktemp("served") / "tiny"
    save_pretrained(random_model(vocab_size=320, num_layers=2), folder, format="native")
    return save_tokenizer("byte-level", folder, chat_template=TEMPLATE)


@pytest.fixture
def served(monkeypatch):
    """Commands that would be run, with what is in the folder that they serve. None is run."""
    found = []

    def record(command, model, ready):
        ready()
        found.append((command, model, sorted(file.name for file in model.folder.iterdir())))
        return 3

    monkeypatch.setattr("jaxllm.commands.generation.serve.run_server", record)
    return found


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_what_servers_do_not_read_is_exported_first(folder, served, tmp_path, capsys):
    port = str(free_port())
    command = ["serve", str(folder), "--port", port, "--with", "transformers"]
    assert main([*command, "--server-options=--log-level 'info'"]) == 2
    said = capsys.readouterr().err
    assert f"tiny is served at http://localhost:{port}/v1 by transformers serve" in said
    assert "transformers serve ended with status 3; what it has written says why" in said
    [(line, model, files)] = served
    assert line[-2:] == ["--log-level", "info"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert model.folder.name == "tiny"
    assert not model.folder.exists()
    kept = tmp_path / "kept"
    assert main([*command, "--export", str(kept), "--dtype", "bfloat16"]) == 2
    assert json.loads((kept / "config.json").read_text())["torch_dtype"] == "bfloat16"
    # What is exported now is served where it is.
    assert main(["serve", str(kept), "--port", port, "--with", "transformers"]) == 2
    assert served[-1][1].folder == kept
    assert main(["serve", str(kept), "--port", port, "--export", str(tmp_path / "again")]) == 2
    assert "is a Hugging Face folder, which is served as it is" in capsys.readouterr().err
    # The servers know nothing of allowances: they are applied by an export.
    again = ["serve", str(kept), "--port", port, "--with", "transformers", "--no-strict"]
    assert main(again) == 2
    assert served[-1][1].folder != kept


def test_a_port_in_use_is_said_before_anything_is_written(folder, served, tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        kept = tmp_path / "kept"
        assert main(["serve", str(folder), "--port", port, "--export", str(kept)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "Address already in use; give another --port" in said
    assert not kept.exists()
    assert not served


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    """A running `jaxllm serve`, its address and its process."""
    port, log = free_port(), tmp_path_factory.mktemp("log") / "log"
    command = [sys.executable, "-m", "jaxllm", "serve", str(folder), "--port", str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_PROXY": "*"}
    with log.open("w") as written:
        process = subprocess.Popen(
            [*command, "--with", "transformers"], stderr=written, stdout=written, env=environment
        )
    while "is served at" not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.2)
    yield f"http://localhost:{port}/v1", process, log
    process.terminate()
    process.wait(timeout=60)


@pytest.mark.exhaustive
def test_the_official_client_gets_our_greedy_tokens(folder, server):
    """By chat, in a stream, with a stop string, and as a plain completion."""
    import openai

    client = openai.OpenAI(base_url=server[0], api_key="none", max_retries=0)
    model, tokenizer = load_pretrained(folder), load_tokenizer(folder)
    prompt = tokenizer.encode_chat(render_chat(folder, MESSAGES))

    def ours(prompt: list[int], stop: tuple[str, ...] = ()) -> str:
        [row] = generate(
            model, [prompt], 24, eos_ids=[1], tokenizer=tokenizer, stop_strings=list(stop)
        )
        return row.text

    def theirs(**options) -> str:
        return client.chat.completions.create(
            model="tiny", messages=MESSAGES, temperature=0, max_tokens=24, **options
        )

    text = ours(prompt)
    assert len(text) > 8
    answer = theirs().choices[0]
    assert answer.message.content == text
    pieces = [
        chunk.choices[0].delta.content or "" for chunk in theirs(stream=True) if chunk.choices
    ]
    assert "".join(pieces) == text
    assert sum(map(bool, pieces)) > 1
    # transformers finds no stop string in bytes that are no characters.
    stop = re.search(r"[!-~]{2}", text[2:]).group()
    stopped = theirs(stop=[stop]).choices[0]
    assert stopped.finish_reason == "stop"
    assert stopped.message.content.partition(stop)[0] == ours(prompt, (stop,))
    completion = client.completions.create(
        model="tiny", prompt="the cat", temperature=0, max_tokens=24
    )
    assert completion.choices[0].text == ours(tokenizer.encode_input("the cat", model.config))


@pytest.mark.exhaustive
def test_ctrl_c_ends_the_server_and_removes_the_export(server):
    address, process, log = server
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    with socket.socket() as asked:
        assert asked.connect_ex(("127.0.0.1", int(address.split(":")[2].split("/")[0]))) != 0
    [written] = [line for line in log.read_text().splitlines() if line.startswith("writing ")]
    assert not Path(written.removeprefix("writing ")).exists()
    assert "Traceback" not in log.read_text()
