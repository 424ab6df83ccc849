"""The command `generate`: continues prompts with a model."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from jaxllm.errors import UserError

from .options import AddCommand, add_dtype, add_json, add_seed, count, unicode_text

if TYPE_CHECKING:
    from jaxllm.models import TokenModel
    from jaxllm.train.data.tokenizers import Tokenizer


def add_commands(add: AddCommand) -> None:
    """Adds `generate` to the command line."""
    generate = add(
        "generate",
        _generate,
        "Continue prompts with a model.",
        'jaxllm generate runs/tiny --prompt "def " --temperature 0.8',
    )
    generate.add_argument("path", metavar="MODEL", help="a checkpoint of a known family, or a run")
    generate.add_argument(
        "--prompt",
        action="append",
        type=unicode_text,
        required=True,
        metavar="TEXT",
        help="a text to continue; repeatable",
    )
    generate.add_argument(
        "--max-new-tokens",
        type=count,
        default=128,
        metavar="N",
        help="maximum number of new tokens (default: %(default)s)",
    )
    generate.add_argument(
        "--beams", type=count, metavar="N", help="use beam search with N beams, not sampling"
    )
    add_dtype(generate)
    generate.add_argument(
        "--tokenizer",
        metavar="FILE",
        help="a tokenizer.json or its folder (default: the checkpoint's own, else bytes)",
    )
    add_json(generate, "each prompt, its text and its tokens")
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
        default=1.0,
        metavar="X",
        help="above 1, tokens already in the text become less probable (default: %(default)s)",
    )
    add_seed(sampling, "random seed")


def _generate(arguments: argparse.Namespace) -> int:
    from jaxllm.generation import Sampling, beam_search, generate
    from jaxllm.interop import load_pretrained
    from jaxllm.models import TokenModel

    penalty = arguments.repetition_penalty
    sampling = Sampling(
        repetition_penalty=penalty,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
    )
    model = load_pretrained(arguments.path, dtype=arguments.dtype)
    if not isinstance(model, TokenModel):
        raise UserError(
            f"{arguments.path} is a {type(model).__name__}, which has no tokens to generate"
        )
    tokenizer = _tokenizer(arguments.path, arguments.tokenizer, model)
    if arguments.beams and sampling != Sampling(repetition_penalty=penalty):
        raise UserError(
            "--beams cannot be combined with --temperature, --top-k or --top-p: beam search does "
            "not sample"
        )
    prompts = [tokenizer.encode_prompt(prompt) for prompt in arguments.prompt]
    limit, eos_ids = arguments.max_new_tokens, [tokenizer.eos_id]
    if arguments.beams:
        tokens = beam_search(
            model,
            prompts,
            limit,
            num_beams=arguments.beams,
            repetition_penalty=penalty,
            eos_ids=eos_ids,
        )
    else:
        tokens = generate(
            model, prompts, limit, sampling=sampling, eos_ids=eos_ids, seed=arguments.seed
        )
    for prompt, new in zip(arguments.prompt, tokens, strict=True):
        text = tokenizer.decode([token for token in new if token != tokenizer.eos_id])
        if arguments.json:
            print(json.dumps({"prompt": prompt, "text": text, "tokens": new}))
        else:
            print(prompt + text)
    return 0


def _tokenizer(path: str, given: str | None, model: "TokenModel") -> "Tokenizer":
    """Returns the given tokenizer, or that of the run, checkpoint or its origin, or bytes."""
    from jaxllm.train.config import load_stored
    from jaxllm.train.data.documents import DataConfig
    from jaxllm.train.data.pairs import PairsConfig
    from jaxllm.train.data.tokenizers import load_tokenizer

    if given is None and (Path(path) / "config.yaml").is_file():
        data = load_stored(Path(path) / "config.yaml").data
        if not isinstance(data, DataConfig | PairsConfig):
            raise UserError(
                f"{path} was not trained on text, so it has no tokenizer; its data is {data}"
            )
        return load_tokenizer(data.tokenizer, eos=data.eos)
    folders = [Path(path)] if model.origin is None else [Path(path), Path(model.origin.directory)]
    own = next((folder for folder in folders if (folder / "tokenizer.json").is_file()), None)
    tokenizer = load_tokenizer(given or own)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model only "
            f"{model.config.vocab_size}: give the model's own with --tokenizer"
        )
    if given is None and own is None and model.config.vocab_size != tokenizer.vocab_size:
        raise UserError(
            f"{path} has no tokenizer.json, and its vocabulary of {model.config.vocab_size} tokens "
            "does not fit the byte tokenizer: give --tokenizer"
        )
    return tokenizer
