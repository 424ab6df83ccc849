"""The command `chat`: a conversation with a model, on the terminal."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from jaxllm.commands.environment import say
from jaxllm.commands.options import AddCommand
from jaxllm.errors import UserError

from .options import add_model, add_sampling, check_sampling, check_template, messages_of
from .writer import Writer, loaded, printer

PROMPT = "> "
HELP = "/reset: begin anew; /save FILE: write the conversation as JSON; /quit or Ctrl-D: end"


def add_commands(add: AddCommand) -> None:
    """Adds `chat` to the command line."""
    chat = add(
        "chat",
        _chat,
        "Talk with a chat model.",
        'jaxllm chat Qwen3-0.6B --system "Answer briefly."',
    )
    add_model(chat)
    add_sampling(chat)
    said = HELP.replace("; ", "\n  ")
    chat.epilog = f"in a conversation:\n  {said}\n  Ctrl-C: stop an answer\n\n{chat.epilog}"


def _chat(arguments: argparse.Namespace) -> int:
    check_sampling(arguments)
    with loaded(arguments) as writer:
        conversation = Conversation(writer, arguments.system, arguments.seed)
        say(HELP, sys.stderr)
        while (text := _ask()) is not None:
            if text.startswith("/"):
                if not conversation.obey(*text.partition(" ")[::2]):
                    break
            elif text.strip():
                conversation.answer(text)
    return 0


def _ask() -> str | None:
    """Returns what the user says next; None at the end. Ctrl-C discards what is typed."""
    while True:
        try:
            return input(PROMPT if sys.stdin.isatty() else "")
        except KeyboardInterrupt:
            print(file=sys.stderr)
        except EOFError:
            return None


class Conversation:
    """The messages so far, and the model that answers."""

    def __init__(self, writer: Writer, system: str | None, seed: int):
        self.writer, self.system, self.seed = writer, system, seed
        self.folder = check_template(writer.folder)
        self.messages = messages_of(system)
        self.session = writer.session()  # what was read of the conversation

    def obey(self, command: str, rest: str) -> bool:
        """Runs a command of the user; returns whether the conversation goes on."""
        commands: dict[str, Callable[[str], None]] = {"/reset": self.reset, "/save": self.save}
        if command == "/quit":
            return False
        try:
            commands.get(command, self.explain)(rest.strip())
        except (UserError, OSError) as error:
            say(str(error), sys.stderr)
        return True

    def explain(self, rest: str) -> None:
        """Says which commands there are."""
        say(HELP, sys.stderr)

    def reset(self, rest: str) -> None:
        """Forgets all messages but the system's."""
        self.messages = messages_of(self.system)

    def save(self, name: str) -> None:
        """Writes the conversation to a file. Raises UserError without a name, or for one in use."""
        if not name:
            raise UserError("/save needs the name of a file")
        if Path(name).exists():
            raise UserError(f"{name} exists")
        Path(name).write_text(json.dumps(self.messages, indent=2, ensure_ascii=False) + "\n")
        say(f"{len(self.messages)} messages in {name}", sys.stderr)

    def answer(self, text: str) -> None:
        """Shows the model's answer while it is written; Ctrl-C ends it, and keeps what there is.

        What cannot be answered, such as a conversation that is too long, is said and forgotten.
        """
        from jaxllm.tokenization.chat import render_chat

        messages, said = [*self.messages, *messages_of(None, text)], list[int]()
        add, finish = printer(self.writer)

        def follow(row: int, tokens: list[int]) -> None:
            said.extend(tokens)
            add(tokens)

        try:
            prompt = self.writer.tokenizer.encode_chat(render_chat(self.folder, messages))
            self.writer.answer(self.session, prompt, self.seed + len(messages), follow)
        except KeyboardInterrupt:
            pass
        except UserError as error:
            say(str(error), sys.stderr)
            return
        finish()
        print()
        self.messages = [*messages, {"role": "assistant", "content": self.writer.text(said)}]
