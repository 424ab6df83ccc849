"""The command `generate`: continues prompts with a model."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxllm.errors import UserError
from jaxllm.hub import local_path

from .environment import say
from .options import (
    CHECKPOINT,
    AddCommand,
    add_allowances,
    add_dtype,
    add_json,
    add_seed,
    allowances,
    count,
    unicode_text,
)

if TYPE_CHECKING:
    from jaxllm.generation import Continuation, Sampling
    from jaxllm.interop.loading.generation_config import GenerationConfig
    from jaxllm.models import TokenModel
    from jaxllm.tokenization import Tokenizer

NEW_TOKENS = 128


def add_commands(add: AddCommand) -> None:
    """Adds `generate` to the command line."""
    generate = add(
        "generate",
        _generate,
        "Continue prompts with a model.",
        'jaxllm generate runs/tiny --prompt "def " --temperature 0.8',
    )
    generate.add_argument("path", metavar="MODEL", help=CHECKPOINT)
    generate.add_argument(
        "--prompt",
        action="append",
        type=unicode_text,
        required=True,
        metavar="TEXT",
        help="a text to continue, or the source of an encoder-decoder; repeatable. Special tokens "
        "in it, such as <|im_end|>, are one token each",
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
        "--max-new-tokens",
        type=count,
        metavar="N",
        help="maximum number of new tokens (default: that of generation_config.json, else "
        f"{NEW_TOKENS})",
    )
    generate.add_argument(
        "--beams", type=count, metavar="N", help="use beam search with N beams, not sampling"
    )
    add_dtype(generate)
    generate.add_argument(
        "--tokenizer",
        metavar="FILE",
        help="a tokenizer.json, a folder with tokenizer files, or bytes (default: the "
        "checkpoint's own; bytes if the vocabulary is theirs)",
    )
    add_json(generate, "each prompt, its text and its tokens")
    add_allowances(generate)
    _add_sampling(generate)


def _add_sampling(generate: argparse.ArgumentParser) -> None:
    sampling = generate.add_argument_group("sampling")
    sampling.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0 takes the most probable token (default: %(default)s)",
    )
    sampling.add_argument(
        "--top-k", type=count, metavar="K", help="sample from the K most probable tokens"
    )
    sampling.add_argument(
        "--top-p", type=float, metavar="P", help="sample from the top tokens of total probability P"
    )
    sampling.add_argument(
        "--repetition-penalty",
        type=float,
        metavar="X",
        help="above 1, tokens already in the text become less probable (default: that of "
        "generation_config.json, else 1)",
    )
    add_seed(sampling, "random seed")


def _generate(arguments: argparse.Namespace) -> int:
    from jaxllm.config import EncoderDecoderConfig
    from jaxllm.interop import load_pretrained
    from jaxllm.models import TokenModel

    _check(arguments)
    arguments.path = str(local_path(arguments.path))
    model = load_pretrained(arguments.path, dtype=arguments.dtype, **allowances(arguments))
    if not isinstance(model, TokenModel):
        raise UserError(
            f"{arguments.path} is a {type(model).__name__}, which has no tokens to generate"
        )
    folder, tokenizer = _tokenizer(arguments.path, arguments.tokenizer, model)
    settings = _settings(arguments, model, tokenizer)
    prompts = [_encode(arguments, text, folder, tokenizer, model) for text in arguments.prompt]
    is_decoder = not isinstance(model.config, EncoderDecoderConfig)
    if is_decoder and any(prompt[-1] in settings.eos_ids for prompt in prompts if prompt):
        say("a prompt ends with an end-of-sequence token: is it complete?", sys.stderr)
    tokens = _continue(arguments, model, prompts, settings)
    for prompt, new in zip(arguments.prompt, tokens, strict=True):
        text = tokenizer.decode([token for token in new if token not in settings.eos_ids])
        if arguments.json:
            print(json.dumps({"prompt": prompt, "text": text, "tokens": new}))
        else:
            say(text if arguments.chat else prompt + text)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raises UserError for options that contradict each other, before the model is loaded."""
    from jaxllm.generation import Sampling

    sampling = _sampling(arguments)
    if arguments.beams and sampling != Sampling():
        raise UserError(
            "--beams cannot be combined with --temperature, --top-k or --top-p: beam search does "
            "not sample"
        )
    if arguments.chat and arguments.untrusted:
        raise UserError(
            "--chat cannot be combined with --untrusted: the special tokens of a chat template are "
            "meant as such"
        )


def _sampling(arguments: argparse.Namespace, repetition_penalty: float = 1.0) -> "Sampling":
    from jaxllm.generation import Sampling

    return Sampling(
        repetition_penalty=repetition_penalty,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
    )


def _settings(
    arguments: argparse.Namespace, model: "TokenModel", tokenizer: "Tokenizer"
) -> "GenerationConfig":
    """Returns what the checkpoint says about generation, with the options in place of it.

    Names on stderr what is not followed.
    """
    from jaxllm.interop.loading.generation_config import GenerationConfig, read_generation_config
    from jaxllm.tokenization import ByteTokenizer
    from jaxllm.tokenization.special_tokens import GENERATION_CONFIG, MODEL_CONFIG

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
        repetition_penalty=found.repetition_penalty
        if arguments.repetition_penalty is None
        else arguments.repetition_penalty,
    )


def _eos_ids(path: str, named: tuple[int, ...], tokenizer: "Tokenizer") -> tuple[int, ...]:
    """Returns the tokens that end a text: as the checkpoint says, and as a run was trained."""
    own = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    if (Path(path) / "config.yaml").is_file():
        return tuple(dict.fromkeys((*own, *named)))
    if not named and not own:
        say("no file names an end-of-sequence token: texts have full length", sys.stderr)
    return named or own


def _encode(
    arguments: argparse.Namespace,
    text: str,
    folder: Path | None,
    tokenizer: "Tokenizer",
    model: "TokenModel",
) -> list[int]:
    """Encodes a prompt as the tokenizer of the model does for what the model reads."""
    if not arguments.chat:
        return tokenizer.encode_input(text, model.config, trusted=not arguments.untrusted)
    from jaxllm.tokenization.chat import render_chat

    if folder is None:
        raise UserError("--chat needs a tokenizer with a chat template, and tokens are bytes")
    return tokenizer.encode_chat(render_chat(folder, [{"role": "user", "content": text}]))


def _continue(
    arguments: argparse.Namespace,
    model: "TokenModel",
    prompts: list[list[int]],
    settings: "GenerationConfig",
) -> "list[Continuation]":
    from jaxllm.generation import beam_search, generate

    limit = settings.max_new_tokens or NEW_TOKENS
    given: dict[str, Any] = {"rules": settings.rules, "eos_ids": settings.eos_ids}
    penalty = settings.repetition_penalty
    if not arguments.beams:
        sampling = _sampling(arguments, penalty)
        return generate(model, prompts, limit, sampling=sampling, seed=arguments.seed, **given)
    return beam_search(
        model,
        prompts,
        limit,
        num_beams=arguments.beams,
        length_penalty=settings.length_penalty,
        repetition_penalty=penalty,
        **given,
    )


def own_folders(path: str, model: "TokenModel") -> list[Path]:
    """Returns the folders with the files of a checkpoint or run: its own, then its origin's."""
    from jaxllm.tokenization.gguf_companions import companion_folder

    origin = [] if model.origin is None else model.origin.folders
    return [companion_folder(Path(path)), *origin]


def _tokenizer(
    path: str, given: str | None, model: "TokenModel"
) -> tuple[Path | None, "Tokenizer"]:
    """Returns the folder of a tokenizer, None for bytes, and the tokenizer.

    It is the given one, or that of the run, the checkpoint or its origin.
    """
    from jaxllm.tokenization import check_tokens, find_tokenizer, load_tokenizer
    from jaxllm.tokenization.finding import BYTES
    from jaxllm.tokenization.gguf_companions import companion_folder

    chosen, eos, is_new = given, None, False
    if given is None and (Path(path) / "config.yaml").is_file():
        chosen, eos, is_new = _tokenizer_of_run(Path(path), model)
    found = find_tokenizer(own_folders(path, model)) if chosen is None and not is_new else None
    tokenizer = load_tokenizer(chosen or found, eos=eos)
    check_tokens(
        tokenizer, model.config, is_chosen=chosen is not None or is_new, option="--tokenizer"
    )
    place = chosen or found
    if place is None or str(place) == BYTES:
        return None, tokenizer
    folder = companion_folder(local_path(place))
    return folder if folder.is_dir() else folder.parent, tokenizer


def _tokenizer_of_run(path: Path, model: "TokenModel") -> tuple[str | None, str | None, bool]:
    """Returns what a run was trained with: the tokenizer, its eos, and whether the model is new."""
    from jaxllm.train.config import load_stored
    from jaxllm.train.data.documents import DataConfig
    from jaxllm.train.data.pairs import PairsConfig
    from jaxllm.train.setup import with_tokenizer

    run = load_stored(path / "config.yaml")
    data = with_tokenizer(run, model)
    if not isinstance(data, DataConfig | PairsConfig):
        raise UserError(
            f"{path} was not trained on text, so it has no tokenizer; its data is {data}"
        )
    return data.tokenizer, data.eos, run.model is not None
