"""Conversations: history, commands, and answers that can be stopped."""

import builtins
import json
import os
import pty
import re
import subprocess
import sys

import pytest
from tiny import random_model
from tokenizer_kinds import save_tokenizer

from jaxllm.cli import main
from jaxllm.generation import Continuation
from jaxllm.interop import save_pretrained

TEMPLATE = "{% for m in messages %}{{ m.role[0] }} {{ m.content }} {% endfor %}<s>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "llama"
    save_pretrained(random_model(vocab_size=11, num_layers=1), folder)
    return save_tokenizer("words, end", folder, chat_template=TEMPLATE)


@pytest.fixture
def talk(folder, monkeypatch, capsys):
    """Runs a conversation of given lines; returns what is shown, and the prompts of the model."""

    def run(*lines, options=(), answer=None):
        texts, prompts = iter(lines), []

        def ask(prompt: str = "") -> str:
            line = next(texts, EOFError())
            if isinstance(line, BaseException | type):
                raise line
            return line

        def reply(session, given, limit, *, stream, **settings):
            prompts.append(given)
            for token in (7, 8, 1):
                stream(0, [token])
                if answer is not None:
                    answer()
            return Continuation([7, 8, 1], "eos")

        monkeypatch.setattr(builtins, "input", ask)
        monkeypatch.setattr("jaxllm.generation.Session.generate", reply)
        assert main(["chat", str(folder), *options]) == 0
        return capsys.readouterr(), prompts

    return run


def interrupt() -> None:
    raise KeyboardInterrupt


def test_answers_see_all_that_was_said_before(talk, tmp_path):
    saved = tmp_path / "saved.json"
    said, prompts = talk("the", "a", f"/save {saved}", options=["--system", "x"])
    assert said.out.count("\n") == 2
    messages = json.loads(saved.read_text())
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert messages[1]["content"] == "the"
    assert messages[2]["content"] == said.out.splitlines()[0]
    assert len(prompts[1]) > len(prompts[0])
    assert prompts[1][: len(prompts[0]) - 1] == prompts[0][:-1]
    assert prompts[0][-1] == 3


def test_reset_forgets_all_but_the_system_message(talk):
    _, prompts = talk("the", "/reset", "the", options=["--system", "x"])
    assert prompts[0] == prompts[1]


def test_ctrl_c_stops_the_answer_and_nothing_else(talk, tmp_path):
    saved = tmp_path / "saved.json"
    said, prompts = talk(KeyboardInterrupt, "the", f"/save {saved}", "/quit", "a", answer=interrupt)
    assert len(prompts) == 1
    messages = json.loads(saved.read_text())
    assert messages[-1] == {"role": "assistant", "content": said.out.rstrip("\n")}


def test_commands_that_fail_or_are_not_known_say_so(talk, tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    said, prompts = talk("/sing", "/save", f"/save {taken}", f"/save {tmp_path}/no/where", "  ")
    assert prompts == []
    assert said.err.count("/reset: begin anew") == 2
    assert "/save needs the name of a file" in said.err
    assert f"{taken} exists" in said.err
    assert "No such file" in said.err
    assert taken.read_text() == "mine"


def test_bytes_have_no_conversations(byte_model, capsys):
    assert main(["chat", str(byte_model), "--tokenizer", "bytes"]) == 2
    assert "a chat needs a tokenizer with a chat template" in capsys.readouterr().err


# Gives the command a terminal of its own, from which Ctrl-C is a signal.
ON_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.executable, [sys.executable, '-m', 'jaxllm', *sys.argv[1:]])"
)


@pytest.mark.exhaustive
def test_a_conversation_on_a_terminal(folder, tmp_path):
    """A user's session: an answer appears piece by piece, Ctrl-C stops it, the next one comes."""
    control, terminal = pty.openpty()
    saved = tmp_path / "saved.json"
    command = ["chat", str(folder), "--max-new-tokens", "500", "--temperature", "9"]
    child = subprocess.Popen(
        [sys.executable, "-c", ON_TERMINAL, *command],
        **dict.fromkeys(("stdin", "stdout", "stderr"), terminal),
        start_new_session=True,
    )
    os.close(terminal)
    shown = ""

    def read_until(text: str) -> None:
        nonlocal shown
        shown = ""
        while not re.search(text, shown):
            shown += os.read(control, 4096).decode(errors="replace")

    read_until("> $")
    os.write(control, b"the\n")
    read_until(r"the\r\n.*\w+ \w+ \w+")
    os.write(control, b"\x03")
    read_until(r"\n> $")
    os.write(control, f"/save {saved}\n/quit\n".encode())
    assert child.wait(timeout=60) == 0
    os.close(control)
    answer = json.loads(saved.read_text())[-1]
    assert answer["role"] == "assistant"
    assert 3 <= len(answer["content"].split()) < 500
