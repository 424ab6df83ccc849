"""The command that continues prompts."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from .options import Add, count

if TYPE_CHECKING:
    from jaxllm.models.decoder import Decoder
    from jaxllm.train.data.text import Tokenizer


def add_commands(add: Add) -> None:
    """`generate`."""
    generate = add("generate", _generate, "Continue prompts with a model.")
    generate.add_argument("path", help="a checkpoint of any known family, or a run")
    generate.add_argument("--prompt", action="append", required=True, help="may be repeated")
    generate.add_argument("--max-new-tokens", type=count, default=128, help="(%(default)s)")
    generate.add_argument(
        "--temperature", type=float, default=0.0, help="0 is greedy (%(default)s)"
    )
    generate.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        help="above 1: tokens already in the text are less likely (%(default)s: none)",
    )
    generate.add_argument("--top-k", type=count)
    generate.add_argument("--top-p", type=float)
    generate.add_argument("--beams", type=count, help="search for the likeliest text instead")
    generate.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    generate.add_argument("--dtype", help="float32, bfloat16 or float16; default: as stored")
    generate.add_argument("--tokenizer", help="a tokenizer.json; default: the checkpoint's own")
    generate.add_argument("--json", action="store_true", help="print prompts and tokens as JSON")


def _generate(arguments: argparse.Namespace) -> int:
    from jaxllm.generation import Sampling, beam_search, generate
    from jaxllm.interop import load_pretrained

    penalty = arguments.repetition_penalty
    sampling = Sampling(
        repetition_penalty=penalty,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
    )
    model = load_pretrained(arguments.path, dtype=arguments.dtype)
    tokenizer = _tokenizer(arguments.path, arguments.tokenizer, model)
    if arguments.beams and sampling != Sampling(repetition_penalty=penalty):
        raise ValueError("--beams does not sample: give no temperature, top-k or top-p")
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


def _tokenizer(path: str, given: str | None, model: "Decoder") -> "Tokenizer":
    """The tokenizer asked for, else that of the run, the checkpoint or its origin, else bytes."""
    from jaxllm.train.config import load_stored
    from jaxllm.train.data.documents import DataConfig
    from jaxllm.train.data.pairs import PairsConfig
    from jaxllm.train.data.text import load_tokenizer

    if given is None and (Path(path) / "config.yaml").is_file():
        data = load_stored(Path(path) / "config.yaml").data
        if not isinstance(data, DataConfig | PairsConfig):
            raise ValueError(f"{path} was not trained on text, and has no tokenizer: {data}")
        return load_tokenizer(data.tokenizer, eos=data.eos)
    folders = [Path(path)] if model.origin is None else [Path(path), Path(model.origin.directory)]
    own = next((folder for folder in folders if (folder / "tokenizer.json").is_file()), None)
    tokenizer = load_tokenizer(given or own)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}"
        )
    if given is None and own is None and model.config.vocab_size != tokenizer.vocab_size:
        raise ValueError(
            f"{path} has no tokenizer.json, and its vocabulary of {model.config.vocab_size} tokens "
            "is not bytes: give --tokenizer"
        )
    return tokenizer
