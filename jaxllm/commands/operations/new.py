"""The command `new`: writes the commented YAML file of a run."""

import argparse
import json
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from jaxllm.commands.environment import say
from jaxllm.commands.options import AddCommand
from jaxllm.errors import UserError

LONGEST = 1024  # tokens of a row, unless the model sees fewer
CHATS = {"messages", "conversations", "instruction", "completion"}


class Start(NamedTuple):
    """The model that a run begins with: its lines of YAML, and the most tokens that it sees."""

    lines: str
    max_len: int
    is_new: bool
    is_adapter: bool = False


def add_commands(add: AddCommand) -> None:
    """Adds `new` to the command line."""
    command = add(
        "new",
        _new,
        "Write the commented YAML file of a run.",
        "jaxllm new mine --from Qwen3-0.6B --data talks.jsonl --lora",
    )
    command.add_argument("name", metavar="NAME", help="of the run; the file is NAME.yaml")
    command.add_argument(
        "--from",
        dest="start",
        required=True,
        metavar="MODEL",
        help="a checkpoint or hf://ORG/NAME to fine-tune, or an architecture to train from random "
        f"weights: {', '.join(preset_names())}",
    )
    command.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="FILE",
        help="files, folders or patterns: texts, conversations, preferences or tokens, as the "
        "first row says",
    )
    command.add_argument("--tokenizer", metavar="PATH", help="(default: that of MODEL, or bytes)")
    command.add_argument("--lora", action="store_true", help="train an adapter beside the weights")


def preset_names() -> list[str]:
    """Returns the names of the architectures that come with jaxllm."""
    found = files(__package__).joinpath("presets").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in found if file.name.endswith(".yaml"))


def _new(arguments: argparse.Namespace) -> int:
    from jaxllm.storage.paths import check_output
    from jaxllm.storage.whole_file import write_whole
    from jaxllm.train import load_config

    file = check_output(f"{arguments.name}.yaml")
    if file.exists():
        raise UserError(f"{file} exists; choose another name, or remove it")
    start = _find_start(arguments.start)
    if arguments.lora and start.is_new:
        raise UserError(
            f"--lora: {arguments.start} has no weights to adapt; --from a checkpoint does"
        )
    if arguments.lora and start.is_adapter:
        raise UserError(f"--lora: {arguments.start} is an adapter, which is trained on as it is")
    kind = find_kind(arguments.data)
    write_whole(file, compose(arguments, start, kind))
    load_config(file)  # as `jaxllm train` does
    say(f"wrote {file}  data.{kind}")
    say(f"look at the data with `jaxllm data {file}`, and begin with `jaxllm train {file}`")
    return 0


def _find_start(given: str) -> Start:
    import yaml

    from jaxllm.errors import did_you_mean
    from jaxllm.hub import local_path
    from jaxllm.interop.adapters.continuing import find_checkpoint
    from jaxllm.interop.adapters.merging import is_adapter
    from jaxllm.interop.loading.checkpoint import read_model_config

    if given in preset_names():
        lines = files(__package__).joinpath("presets", f"{given}.yaml").read_text()
        comment = f"# The architecture {given}, from random weights.\n"
        return Start(comment + lines, yaml.safe_load(lines)["model"]["max_len"], True)
    place = local_path(given)
    if not place.exists():
        raise UserError(
            f"--from {given}: there is no such checkpoint, and no such architecture; there are "
            f"{', '.join(preset_names())}{did_you_mean(given, preset_names())}"
        )
    max_len = getattr(read_model_config(find_checkpoint(place)), "max_len", LONGEST)
    comment = "# The checkpoint whose weights and tokenizer the run begins with.\n"
    if is_adapter(place):
        comment = "# The adapter that is trained on, with its settings of LoRA.\n"
    lines = f"{comment}init_from: {json.dumps(given)}\n"
    return Start(lines, max_len, False, is_adapter(place))


def find_kind(patterns: list[str]) -> str:
    """Returns the field of `data` that takes these files, as their names or the first row say.

    Raises UserError if they cannot be read.
    """
    from jaxllm.train.data.files import read_rows
    from jaxllm.train.data.streams.manifest import FILE
    from jaxllm.train.data.streams.token_files import ENDS

    first = Path(patterns[0])
    if (first / FILE).is_file() or first.name.endswith(ENDS):
        return "tokens"
    columns = ("text", "chosen", "rejected", "prompt", *sorted(CHATS))
    (row,) = islice(read_rows(patterns, columns), 1)
    try:
        keys = set(row.parse(row.raw))
    except (TypeError, ValueError) as error:
        raise row.explain(error) from None
    if {"chosen", "rejected"} <= keys:
        return "preferences"
    return "chat" if keys & CHATS else "text"


def compose(arguments: argparse.Namespace, start: Start, kind: str) -> str:
    """Returns the text of the file."""
    rate, lora = ("3.0e-4" if start.is_new else "2.0e-5"), ""
    if arguments.lora or start.is_adapter:
        rate = "1.0e-4"
    if arguments.lora:
        lora = (
            "  # Train small factors beside the frozen weights; see docs/train.md\n"
            "  lora: {rank: 16, alpha: 32}\n"
        )
    tokenizer, packing = "", ""
    if arguments.tokenizer:
        tokenizer = f"  tokenizer: {json.dumps(arguments.tokenizer)}\n"
    if kind in ("text", "tokens", "chat"):
        usual = "best_fit" if kind == "chat" else "separate"
        packing = f"  packing: {usual}  # how documents share rows (docs/data.md)\n"
    held_out = "" if kind == "tokens" else "  held_out: 0.02  # never trained on\n"
    dpo = "loss:\n  dpo: {beta: 0.1}  # how near the model stays to where it began\n"
    return (
        "# Written by `jaxllm new`. All fields are listed by `jaxllm train "
        f"{arguments.name}.yaml --help`.\n"
        "# The folder of the run: config, metrics, loss.png and checkpoints.\n"
        f"output: {json.dumps(f'runs/{arguments.name}')}\n\n"
        f"{start.lines}\n"
        f"data:\n  {kind}: {json.dumps(arguments.data)}\n{tokenizer}{packing}{held_out}\n"
        "steps: 1000\n"
        "batch_size: 8  # sequences per step, over all devices\n"
        f"seq_len: {min(start.max_len, LONGEST)}  # tokens per sequence; the model sees "
        f"{start.max_len:,}\n"
        "# accumulate: 2  # parts of a batch, one after the other: the same update, less memory\n"
        "# mesh: {fsdp: 8}  # devices that share parameters and rows; see `jaxllm plan`\n"
        "# dtype: bfloat16  # of activations\n"
        f"{dpo if kind == 'preferences' else ''}\n"
        "optimizer:\n"
        f"  learning_rate: {rate}\n"
        "  warmup_steps: 30\n"
        f"{lora}\n"
        "eval_every: 100  # steps between held-out losses\n"
        "save_every: 100  # steps between checkpoints, of which `keep` (2) stay\n"
        "# export: {every: 500}  # also for transformers or, with LoRA, PEFT, while it trains\n"
    )
