"""Commands about data: `tokenize` writes shards of tokens, `data` shows what a model will see."""

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING

from jaxllm.commands.environment import log_to_stderr, print_rich, say
from jaxllm.commands.options import AddCommand, add_json, count
from jaxllm.commands.runs import OVERRIDES, read_run_config
from jaxllm.errors import UserError

if TYPE_CHECKING:
    from jaxllm.models import Model
    from jaxllm.train import TrainConfig
    from jaxllm.train.data.streams.building import Source

SECONDS = 5.0  # between lines of progress where stderr is no terminal


def add_commands(add: AddCommand) -> None:
    """Adds `tokenize` and `data` to the command line."""
    _add_tokenize(add)
    data = add(
        "data",
        _data,
        "Show what a model will see: decoded rows, what is learned of them, lengths.",
        "jaxllm data configs/tiny.yaml --html data.html",
    )
    data.set_defaults(takes_overrides=True)
    data.epilog = f"{OVERRIDES}\n\n{data.epilog}"
    data.add_argument("config", metavar="CONFIG", help="the YAML file of a run")
    data.add_argument(
        "--rows", type=count, default=4, metavar="N", help="rows to show (default: 4)"
    )
    data.add_argument(
        "--step", type=count, default=1, metavar="N", help="the step they are of (default: 1)"
    )
    data.add_argument("--html", metavar="FILE", help="write a page with the rows to a file")
    add_json(data, "the summary")


def _add_tokenize(add: AddCommand) -> None:
    tokenize = add(
        "tokenize",
        _tokenize,
        "Tokenize text or chats into shards that training reads where they are.",
        "jaxllm tokenize 'web/*.jsonl.gz' tokens --tokenizer Qwen3-0.6B",
    )
    tokenize.add_argument("source", metavar="SRC", help="a file, a folder or a pattern")
    tokenize.add_argument(
        "destination",
        metavar="DST",
        help="a new folder for the shards; one that was interrupted is continued",
    )
    tokenize.add_argument(
        "--tokenizer",
        required=True,
        metavar="PATH",
        help="tokenizer.json, a folder with files of a tokenizer, or 'bytes'",
    )
    tokenize.add_argument("--eos", metavar="TOKEN", help="the token that ends documents")
    tokenize.add_argument("--text-key", default="text", metavar="KEY", help="(default: text)")
    tokenize.add_argument(
        "--chat", action="store_true", help="read conversations, not texts (docs/data.md)"
    )
    tokenize.add_argument(
        "--template", metavar="NAME", help="chat template; by default the tokenizer's"
    )
    tokenize.add_argument(
        "--held-out",
        type=_fraction,
        default=0.0,
        metavar="FRACTION",
        help="of the documents, for shards that are never trained on (default: 0)",
    )
    tokenize.add_argument(
        "--bad-rows",
        choices=("stop", "skip"),
        default="stop",
        help="what to do with rows that cannot be used (default: stop)",
    )
    tokenize.add_argument(
        "--workers", type=count, default=1, metavar="N", help="processes (default: 1)"
    )


def _fraction(text: str) -> float:
    """Parses a fraction, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not in [0, 1)")
    return value


def _data(arguments: argparse.Namespace) -> int:
    import jax

    jax.config.update("jax_platforms", "cpu")  # nothing is computed, so no accelerator is taken
    from jaxllm.storage.paths import check_output
    from jaxllm.storage.whole_file import write_whole
    from jaxllm.tokenization import load_tokenizer
    from jaxllm.train.data import Documents
    from jaxllm.train.data.batches import Batches
    from jaxllm.train.data.inspection.render import render_page, render_terminal
    from jaxllm.train.data.inspection.summary import summarize
    from jaxllm.train.setup import with_tokenizer

    log_to_stderr()
    config = read_run_config(arguments)
    model = _abstract_model(config)
    data = with_tokenizer(config, model)
    if not isinstance(data, Documents):
        raise UserError(f"{arguments.config}: its data are no documents, whose rows are shown")
    batches = Batches(
        data.load(model, config.seq_len), batch_size=config.batch_size, seed=data.seed
    )
    summary = summarize(
        batches,
        load_tokenizer(data.tokenizer, eos=data.eos),
        config.seq_len,
        step=arguments.step - 1,
        rows=arguments.rows,
    )
    if arguments.html:
        page = check_output(arguments.html)
        write_whole(page, render_page(summary, arguments.config))
        say(f"wrote {page}")
    if arguments.json:
        print(json.dumps(dataclasses.asdict(summary)))
    elif not arguments.html:
        for part in render_terminal(summary):
            print_rich(part)
    return 0


def _abstract_model(config: "TrainConfig") -> "Model":
    """Returns the model of a run without weights."""
    from jaxllm.interop.adapters.continuing import find_checkpoint
    from jaxllm.interop.loading.checkpoint import read_model_config
    from jaxllm.models import build_abstract

    if config.model is not None:
        return build_abstract(config.model)
    return build_abstract(read_model_config(find_checkpoint(str(config.init_from))))


def _tokenize(arguments: argparse.Namespace) -> int:
    from jaxllm.checkpoint_origin import copy_tokenizer
    from jaxllm.hub import local_path
    from jaxllm.storage.paths import check_output
    from jaxllm.tokenization import load_tokenizer
    from jaxllm.tokenization.finding import BYTES
    from jaxllm.train.data.streams.tokenizing import Options, sizes_of, tokenize_files

    log_to_stderr()
    if arguments.template and not arguments.chat:
        raise UserError("--template: only with --chat")
    tokenizer = load_tokenizer(arguments.tokenizer, eos=arguments.eos)
    files, sizes = sizes_of([arguments.source])
    names = ("source", "tokenizer", "eos", "text_key", "chat", "template")
    options = Options(
        files,
        sizes,
        tokenizer.fingerprint,
        tokenizer.vocab_size,
        {name: getattr(arguments, name) for name in names},
        arguments.held_out,
        arguments.bad_rows,
    )
    folder = check_output(arguments.destination)
    open_source = functools.partial(
        open_documents,
        tokenizer=arguments.tokenizer,
        eos=arguments.eos,
        key=arguments.text_key,
        chat=arguments.chat,
        template=arguments.template,
    )
    with _progress() as show:
        manifest = tokenize_files(open_source, options, folder, arguments.workers, show)
    if arguments.tokenizer != BYTES:
        (folder / "tokenizer").mkdir(exist_ok=True)
        copy_tokenizer(local_path(arguments.tokenizer), folder / "tokenizer")
    for split in ("train", "held_out"):
        if documents := manifest.count("documents", split):
            tokens = manifest.count("tokens", split)
            say(f"{split.replace('_', ' ')}  documents {documents:,}  tokens {tokens:,}")
    if manifest.skipped:
        say(f"skipped {manifest.skipped:,} rows that could not be used")
    say(f"wrote {folder}  {len(manifest.shards)} shards  manifest.json")
    return 0


def open_documents(
    files: Sequence[str],
    *,
    tokenizer: str,
    eos: str | None,
    key: str,
    chat: bool,
    template: str | None,
) -> "Source":
    """Returns the documents of files, and how they become tokens; called in each process."""
    from jaxllm.tokenization import load_tokenizer
    from jaxllm.tokenization.chat import Chat
    from jaxllm.tokenization.finding import BYTES
    from jaxllm.train.data.chat import chat_source
    from jaxllm.train.data.documents import text_source

    loaded = load_tokenizer(tokenizer, eos=eos)
    if not chat:
        return text_source(files, loaded, key=key)
    opened = Chat.of(None if tokenizer == BYTES else tokenizer, template)
    return chat_source(files, opened, loaded)


@contextmanager
def _progress() -> Iterator[Callable[[float, int], None]]:
    """Yields a function that shows the share of the work that is done, and the time left."""
    import rich.progress
    from rich.console import Console

    start, last, first = monotonic(), monotonic(), -1.0
    console = Console(file=sys.stderr)
    display = rich.progress.Progress(
        "tokenizing {task.percentage:.1f}%",
        rich.progress.BarColumn(),
        "{task.description}",
        console=console,
    )
    task = display.add_task("", total=1.0)

    def show(share: float, tokens: int) -> None:
        nonlocal last, first
        first = share if first < 0 else first  # what an interrupted command had done
        seconds, made = monotonic() - start, share - first
        left = seconds * (1 - share) / made if made > 0 else None
        text = f"{tokens:,} tokens" + ("" if left is None else f"  {left:,.0f} s left")
        if console.is_terminal:
            display.update(task, completed=share, description=text)
        elif monotonic() - last > SECONDS:
            last = monotonic()
            print(f"tokenizing {share:.1%}  {text}", file=sys.stderr, flush=True)

    if console.is_terminal:
        with display:
            yield show
    else:
        yield show
