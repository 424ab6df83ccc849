"""Parity of a checkpoint on disk: PyTorch runs it, we run it, and the two are compared."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from jaxllm.config import EncoderDecoderConfig
from jaxllm.interop.directory import read_json
from jaxllm.interop.families import FAMILIES, Family
from jaxllm.interop.hugging_face import require_torch
from jaxllm.interop.lazy import open_pretrained
from jaxllm.interop.load import load_pretrained
from jaxllm.interop.tensors import CheckpointError
from jaxllm.models import Model

from .calling import calling_of
from .inputs import Inputs, draw, elements_of
from .judge import compare, levels_of
from .plain import load_plain
from .prompt import MIN_TOKENS, text_tokens
from .report import Report
from .shelf import Shelf, in_memory, on_disk, parameters_on


def check_checkpoint(
    path: str | Path,
    *,
    tokens: np.ndarray | Inputs | None = None,
    text: str | None = None,
    num_tokens: int = 384,
    batch_size: int = 2,
    seed: int = 0,
    model: Model | None = None,
    levels: Sequence[str] | None = None,
    rules: Any = None,
    scratch: str | Path | None = None,
) -> Report:
    """Whether we compute from a checkpoint what PyTorch computes from it.

    That is transformers, or for a source system the model of `jaxllm.interop.reference`.

    Args:
        path: a folder of Hugging Face, or of a source system. Nothing is downloaded.
        tokens: BT, token ids to compare on, or BTI, vectors, or `Inputs`; by default random ones,
            the last row padded.
        text: instead, a text; it is cut or repeated to `num_tokens`. It is the source as well.
        num_tokens: the length of each row of random inputs, if the model has as many positions.
        batch_size: the number of rows of random inputs.
        seed: of the random inputs.
        model: what to compare; by default what `load_pretrained` makes of the folder.
        levels: of those of `compare`; by default all that there are but the curve, which takes as
            long as all others together.
        rules: of a model of your own, as docs/rules.md says, which its own `reference` runs;
            `path` may then be a file.
        scratch: of a model larger than memory, a folder with room for its weights in float32 and
            all that both compute, which are gone afterwards. There are no levels then that train
            or generate.

    Raises:
        ImportError: torch or transformers is not installed.
        CheckpointError: the folder is not a checkpoint that both sides can read.
        ValueError: `num_tokens` are too few for a verdict, or tokens and text are both given.
    """
    path = Path(path)
    shelf = in_memory if scratch is None else on_disk(Path(scratch))
    reference, model, inputs = open_both(
        path,
        tokens=tokens,
        text=text,
        num_tokens=num_tokens,
        batch_size=batch_size,
        seed=seed,
        model=model,
        rules=rules,
        shelf=shelf,
    )
    usual = [level for level in levels_of(model) if level != "curve"]
    levels = usual if levels is None else levels
    report = compare(reference, model, inputs, levels=levels, shelf=shelf)
    is_random = tokens is None and text is None
    return dataclasses.replace(report, subject=path.name, seed=seed if is_random else None)


def open_both(
    path: Path,
    *,
    tokens: np.ndarray | Inputs | None = None,
    text: str | None = None,
    num_tokens: int = 384,
    batch_size: int = 2,
    seed: int = 0,
    model: Model | None = None,
    rules: Any = None,
    shelf: Shelf = in_memory,
) -> tuple[Any, Model, Inputs]:
    """PyTorch's model of a checkpoint, ours, and what both are given; see `check_checkpoint`."""
    if tokens is not None and text is not None:
        raise ValueError("tokens and text are both given")
    if num_tokens < MIN_TOKENS:
        raise ValueError(
            f"num_tokens={num_tokens} is less than {MIN_TOKENS}: wrong positions show late"
        )
    family = None if rules is not None else _family_of(path)
    require_torch()
    if model is None:
        load = load_pretrained if shelf is in_memory else open_pretrained
        model = load(path, dtype="float32", rules=rules)
    if family is None or family.reference is not None:
        reference = load_plain(path, rules, shelf)
    else:
        reference = _load_reference(path, family, shelf)
    if text is not None:
        inputs = _spelt(text, path, model, num_tokens)
    elif tokens is not None:
        inputs = Inputs.of(tokens)
    else:
        calling = calling_of(reference)
        inputs = draw(
            model,
            calling.masks(reference),
            num_tokens=num_tokens,
            batch_size=batch_size,
            seed=seed,
        ).without(calling.padding(reference), model)
    return reference, model, inputs


def _spelt(text: str, path: Path, model: Model, num_tokens: int) -> Inputs:
    """A text as all the sequences that a model is given."""
    given = {}
    for name, elements in elements_of(model).items():
        if not elements.are_tokens:
            raise ValueError(f"text for a {type(model).__name__}, which is given vectors")
        length = min(num_tokens, elements.longest)
        given[name] = text_tokens(text, path, elements.size, length)
    return Inputs(**given)


def _family_of(path: Path) -> Family:
    """The family of a folder. Refuses what no PyTorch can run."""
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder")
    config_file = path / "config.json"
    if not config_file.is_file():
        raise CheckpointError(
            f"{path} has no config.json, and what runs the reference needs one: "
            f"`jaxllm convert {path} NEW --to hf` makes such a folder"
        )
    given = read_json(config_file).get("model_type")
    known = {f.model_type: f for f in FAMILIES if f.format == "hf" or f.reference is not None}
    if given not in known:
        names = ", ".join(map(str, known))
        raise CheckpointError(f"{path} is of model_type {given!r}; known are {names}")
    return known[given]


def _load_reference(path: Path, family: Family, shelf: Shelf) -> Any:
    """The model of transformers, its parameters on the shelf."""
    import torch
    import transformers

    has_encoder = family.config_class is EncoderDecoderConfig
    name = "AutoModelForSeq2SeqLM" if has_encoder else "AutoModelForCausalLM"
    one_by_one = mock.patch.dict(os.environ, HF_DEACTIVATE_ASYNC_LOAD="1")
    with _no_progress_bars(), one_by_one, parameters_on(shelf):
        loaded: Any = getattr(transformers, name).from_pretrained(
            path,
            dtype=torch.float32,
            attn_implementation="eager",
            local_files_only=True,
            output_loading_info=True,
        )
    reference, loading = loaded
    # transformers fills in what a checkpoint lacks with random numbers, and only warns.
    if absent := sorted(map(str, {*loading["missing_keys"], *loading["mismatched_keys"]})):
        raise CheckpointError(
            [f"transformers finds no {name} of the right shape" for name in absent], path
        )
    return reference


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
