"""Options of the commands that generate, and the settings that they and the checkpoint give."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jaxllm.commands.environment import say
from jaxllm.commands.options import (
    CHECKPOINT,
    DTYPES,
    add_allowances,
    add_dtype,
    add_seed,
    count,
    mesh_axis,
    unicode_text,
)
from jaxllm.errors import UserError

if TYPE_CHECKING:
    from jaxllm.generation import Sampling
    from jaxllm.interop.loading.generation_config import GenerationConfig
    from jaxllm.models import TokenModel
    from jaxllm.tokenization import Tokenizer

NEW_TOKENS = 128
LIMITS = ("top_k", "top_p", "min_p")  # of sampling, which a temperature of 0 does without


def add_model(command: argparse.ArgumentParser) -> None:
    """Adds the model, and the options that say how it is loaded and what it may write."""
    command.add_argument("path", metavar="MODEL", help=CHECKPOINT)
    command.add_argument(
        "--system",
        type=unicode_text,
        metavar="TEXT",
        help="a system message at the beginning of each conversation",
    )
    command.add_argument(
        "--max-new-tokens",
        type=count,
        metavar="N",
        help="maximum number of new tokens (default: that of generation_config.json, else "
        f"{NEW_TOKENS})",
    )
    command.add_argument(
        "--tokenizer",
        metavar="FILE",
        help="a tokenizer.json, a folder with tokenizer files, or bytes (default: the "
        "checkpoint's own; bytes if the vocabulary is theirs)",
    )
    command.add_argument(
        "--mesh",
        nargs="+",
        type=mesh_axis,
        default=[],
        metavar="AXIS=SIZE",
        help="mesh to shard the model over (default: one device)",
    )
    add_dtype(command)
    command.add_argument(
        "--cache-dtype",
        choices=(*DTYPES, "int8"),
        metavar="DTYPE",
        help="of the cached keys and values: %(choices)s (default: that of the activations)",
    )
    command.add_argument(
        "--draft",
        metavar="MODEL",
        help="a smaller model of the same vocabulary that proposes tokens: the same text, faster "
        "if many are accepted (speculative decoding)",
    )
    command.add_argument(
        "--draft-tokens",
        type=count,
        default=4,
        metavar="N",
        help="tokens that it proposes at a time (default: %(default)s)",
    )
    add_allowances(command)


def add_sampling(command: argparse.ArgumentParser) -> None:
    """Adds the options of sampling; those that are not given are the checkpoint's."""
    group = command.add_argument_group(
        "sampling (default: as generation_config.json says, else none)"
    )
    group.add_argument(
        "--temperature", type=float, metavar="T", help="0 takes the most probable token"
    )
    group.add_argument(
        "--top-k", type=count, metavar="K", help="sample from the K most probable tokens"
    )
    group.add_argument(
        "--top-p", type=float, metavar="P", help="sample from the top tokens of total probability P"
    )
    group.add_argument(
        "--min-p",
        type=float,
        metavar="P",
        help="sample from tokens of P times the probability of the most probable one, or more",
    )
    group.add_argument(
        "--repetition-penalty",
        type=float,
        metavar="X",
        help="above 1, tokens already in the text become less probable",
    )
    add_seed(group, "random seed")


def merge_sampling(arguments: argparse.Namespace, found: "Sampling") -> "Sampling":
    """Returns the sampling that a checkpoint asks for, with the options in place of its fields.

    Raises UserError for an option out of range, or a limit without a temperature.
    """
    from jaxllm.generation import Sampling

    names = ("temperature", "repetition_penalty", *LIMITS)
    given = {name: getattr(arguments, name) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("temperature") == 0:
        found = Sampling(repetition_penalty=found.repetition_penalty)
    return dataclasses.replace(found, **given)


def check_sampling(arguments: argparse.Namespace) -> None:
    """Raises UserError for an option out of range, before the model is loaded."""
    from jaxllm.generation import Sampling

    needs = any(getattr(arguments, name) is not None for name in LIMITS)
    is_open = needs and arguments.temperature is None  # the checkpoint may have a temperature
    merge_sampling(arguments, Sampling(temperature=1.0) if is_open else Sampling())


def find_settings(
    arguments: argparse.Namespace, model: "TokenModel", tokenizer: "Tokenizer"
) -> "GenerationConfig":
    """Returns what the checkpoint says about generation, with the options in place of it.

    Names on stderr what is not followed.
    """
    from jaxllm.interop.loading.generation_config import GenerationConfig, read_generation_config
    from jaxllm.tokenization import ByteTokenizer
    from jaxllm.tokenization.special_tokens import GENERATION_CONFIG, MODEL_CONFIG

    from .tokenizers import own_folders

    named = (GENERATION_CONFIG, MODEL_CONFIG)
    folders = own_folders(arguments.path, model)
    folder = next((f for f in folders if any((f / file).is_file() for file in named)), None)
    found = GenerationConfig()
    if folder is not None:
        with_eos = not isinstance(tokenizer, ByteTokenizer)
        found = read_generation_config(folder, model.config.vocab_size, with_eos=with_eos)
        if found.not_followed:
            fields = ", ".join(found.not_followed)
            say(f"{folder / GENERATION_CONFIG}: not followed: {fields}", sys.stderr)
    return dataclasses.replace(
        found,
        eos_ids=_eos_ids(arguments.path, found.eos_ids, tokenizer),
        max_new_tokens=arguments.max_new_tokens or found.max_new_tokens or NEW_TOKENS,
        sampling=merge_sampling(arguments, found.sampling),
    )


def _eos_ids(path: str, named: tuple[int, ...], tokenizer: "Tokenizer") -> tuple[int, ...]:
    """Returns the tokens that end a text: as the checkpoint says, and as a run was trained."""
    own = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    if (Path(path) / "config.yaml").is_file():
        return tuple(dict.fromkeys((*own, *named)))
    if not named and not own:
        say("no file names an end-of-sequence token: texts have full length", sys.stderr)
    return named or own


def messages_of(system: str | None, *texts: str) -> list[dict[str, str]]:
    """Returns the conversation of a system message, if there is one, and a user's texts."""
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, *({"role": "user", "content": text} for text in texts)]


def check_template(folder: Path | None) -> Path:
    """Returns the folder of a tokenizer. Raises UserError for bytes, which have no template."""
    if folder is None:
        raise UserError("a chat needs a tokenizer with a chat template, and tokens are bytes")
    return folder
