"""The command `generate`: continues prompts with a model."""

import argparse
import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from jaxllm.commands.environment import say
from jaxllm.commands.options import AddCommand, add_json, count, read_text, unicode_text
from jaxllm.errors import UserError

from .options import (
    NEW_TOKENS,
    add_model,
    add_sampling,
    check_sampling,
    check_template,
    messages_of,
)
from .writer import Stopwatch, Writer, loaded, printer

if TYPE_CHECKING:
    from jaxllm.generation import Continuation

STDIN = "-"


def add_commands(add: AddCommand) -> None:
    """Adds `generate` to the command line."""
    generate = add(
        "generate",
        _generate,
        "Continue prompts with a model.",
        'jaxllm generate runs/tiny --prompt "def " --temperature 0.8',
    )
    add_model(generate)
    generate.add_argument(
        "--prompt",
        action="append",
        type=unicode_text,
        default=[],
        metavar="TEXT",
        help="a text to continue, or the source of an encoder-decoder; repeatable. Special tokens "
        "in it, such as <|im_end|>, are one token each (default: what is read from stdin)",
    )
    generate.add_argument(
        "--file",
        action="append",
        default=[],
        metavar="FILE",
        help="a file with a prompt, or - for stdin; repeatable",
    )
    generate.add_argument(
        "--chat",
        action="store_true",
        help="make each prompt a user's message with the tokenizer's chat template",
    )
    generate.add_argument(
        "--untrusted",
        action="store_true",
        help="read special tokens in prompts as ordinary characters: for prompts from others",
    )
    generate.add_argument(
        "--n", type=count, default=1, metavar="N", help="continuations of each prompt"
    )
    generate.add_argument(
        "--beams", type=count, metavar="N", help="use beam search with N beams, not sampling"
    )
    generate.add_argument(
        "--stats",
        action="store_true",
        help="say on stderr when the first token came, how fast the others did, peak memory, and "
        "the share of drafted tokens that were accepted",
    )
    add_json(generate, "each prompt, its text, its tokens and why they ended")
    add_sampling(generate)


def _generate(arguments: argparse.Namespace) -> int:
    from jaxllm.config import EncoderDecoderConfig

    _check(arguments)
    texts = _prompts(arguments)
    with loaded(arguments) as writer:
        prompts = [_encode(arguments, text, writer) for text in texts]
        is_decoder = not isinstance(writer.model.config, EncoderDecoderConfig)
        ends = writer.settings.eos_ids
        if is_decoder and any(prompt[-1] in ends for prompt in prompts if prompt):
            say("a prompt ends with an end-of-sequence token: is it complete?", sys.stderr)
        watch = Stopwatch()
        if _streams(arguments, texts):
            if not arguments.chat:
                print(texts[0], end="", flush=True)
            _stream(arguments, writer, prompts, watch)
        else:
            rows = _continue(arguments, writer, prompts, watch)
            for i, row in enumerate(rows):
                _show(arguments, texts[i // arguments.n], row, writer)
        if arguments.stats:
            say(watch.describe(), sys.stderr)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raises UserError for options that contradict each other, before the model is loaded."""
    check_sampling(arguments)
    options = ("temperature", "top_k", "top_p", "min_p")
    if arguments.beams and any(getattr(arguments, name) is not None for name in options):
        raise UserError(
            "--beams cannot be combined with --temperature, --top-k, --top-p or --min-p: beam "
            "search does not sample"
        )
    if arguments.beams and arguments.cache_dtype is not None:
        raise UserError("--beams cannot be combined with --cache-dtype")
    if arguments.beams and arguments.draft is not None:
        raise UserError("--beams cannot be combined with --draft: beam search takes no proposals")
    if arguments.beams and arguments.n > arguments.beams:
        raise UserError(f"--n {arguments.n} is more than --beams {arguments.beams}")
    if arguments.chat and arguments.untrusted:
        raise UserError(
            "--chat cannot be combined with --untrusted: the special tokens of a chat template are "
            "meant as such"
        )
    if arguments.system is not None and not arguments.chat:
        raise UserError("--system needs --chat: a system message is part of a conversation")


def _prompts(arguments: argparse.Namespace) -> list[str]:
    """Returns the prompts of the command line, then those of files."""
    files = arguments.file or ([] if arguments.prompt else [STDIN])
    if not arguments.prompt and not arguments.file and sys.stdin.isatty():
        raise UserError("no prompt: give --prompt TEXT, --file FILE, or a text on stdin")
    texts = [sys.stdin.read() if file == STDIN else read_text(file) for file in files]
    return [*arguments.prompt, *texts]


def _encode(arguments: argparse.Namespace, text: str, writer: Writer) -> list[int]:
    """Encodes a prompt as the tokenizer of the model does for what the model reads."""
    config, tokenizer = writer.model.config, writer.tokenizer
    if not arguments.chat:
        return tokenizer.encode_input(text, config, trusted=not arguments.untrusted)
    from jaxllm.tokenization.chat import render_chat

    messages = messages_of(arguments.system, text)
    return tokenizer.encode_chat(render_chat(check_template(writer.folder), messages))


def _streams(arguments: argparse.Namespace, texts: list[str]) -> bool:
    """Whether to show the text while it is written: one text, on a terminal."""
    is_one = len(texts) == 1 and arguments.n == 1 and not arguments.beams
    return is_one and not arguments.json and sys.stdout.isatty()


def _stream(
    arguments: argparse.Namespace, writer: Writer, prompts: list[list[int]], watch: Stopwatch
) -> None:
    add, finish = printer(writer)

    def follow(row: int, tokens: list[int]) -> None:
        watch.note(tokens)
        add(tokens)

    watch.note_drafts(writer.write(prompts, seed=arguments.seed, stream=follow))
    finish()
    print()


def _continue(
    arguments: argparse.Namespace, writer: Writer, prompts: list[list[int]], watch: Stopwatch
) -> list["Continuation"]:
    settings = writer.settings
    if arguments.beams:
        from jaxllm.generation import beam_search

        if settings.sampling.temperature:
            say("generation_config.json: not followed with --beams: do_sample=True", sys.stderr)
        search = partial(
            beam_search,
            num_beams=arguments.beams,
            length_penalty=settings.length_penalty,
            early_stopping=settings.early_stopping,
            num_return_sequences=arguments.n,
            repetition_penalty=settings.sampling.repetition_penalty,
            rules=settings.rules,
            eos_ids=settings.eos_ids,
        )
        rows = search(writer.model, prompts, settings.max_new_tokens or NEW_TOKENS)
        watch.note([token for row in rows for token in row])
        return rows
    options: dict[str, Any] = {"seed": arguments.seed, "num_return_sequences": arguments.n}
    if arguments.stats:
        options["stream"] = lambda row, tokens: watch.note(tokens)
    rows = writer.write(prompts, **options)
    watch.note_drafts(rows)
    return rows


def _show(arguments: argparse.Namespace, prompt: str, row: "Continuation", writer: Writer) -> None:
    text = writer.text(row)
    if arguments.json:
        found = {"prompt": prompt, "text": text, "tokens": [*row], "ended": row.ended}
        print(json.dumps(found))
    else:
        say(text if arguments.chat else prompt + text)
