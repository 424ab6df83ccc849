"""Checkpoint parity: runs a checkpoint on disk in PyTorch and in JAX, and compares the two."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.errors import UserError
from jaxllm.hub import local_path
from jaxllm.interop.loading.allowances import allowance_notes
from jaxllm.models import Model, TokenModel

from .alignment.adapters import adapter_of
from .alignment.inputs import Inputs, draw, sequences_of
from .alignment.prompt import MIN_TOKENS, following_text, text_ids, tokenizer_of, windows
from .both_sides import open_both
from .comparison import compare
from .levels.table import LEVELS, levels_of, not_compared, select_levels
from .memory.array_store import in_memory, on_disk
from .numerics.precision import FLOAT32, PRECISIONS
from .progress import announce
from .rendered_report import Report

SAME_FILES = (
    "Both sides read the same files, {}: this shows that they compute the same from them, not that "
    "the files are right. `jaxllm parity A --against B` compares two checkpoints."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputOptions:
    """The inputs of a checkpoint comparison: given tokens, a text, or (default) drawn inputs.

    Drawn inputs are pages of Python's own documentation if the checkpoint has a tokenizer, and
    random tokens or vectors otherwise.

    Attributes:
        tokens: token ids, BT, or vectors, BTI; encoder-decoders need `Inputs`.
        text: text to tokenize, cut or repeated to `num_tokens`; also the source, if there is one.
        random: whether to draw random tokens even if there is a tokenizer.
        num_tokens: length of each row of text or drawn inputs; less if the model has fewer
            positions.
        batch_size: number of rows of drawn inputs; the last of several is padded.
        seed: seed of drawn inputs.

    Raises:
        UserError: more than one of tokens, text and random is given, or `num_tokens` is too small
            for a verdict.
    """

    tokens: np.ndarray | Inputs | None = None
    text: str | None = None
    random: bool = False
    num_tokens: int = 320
    batch_size: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        kinds = {
            "tokens": self.tokens is not None,
            "text": self.text is not None,
            "random": self.random,
        }
        if sum(kinds.values()) > 1:
            given = " and ".join(name for name, is_given in kinds.items() if is_given)
            raise UserError(f"{given} are given together; give only one of them")
        if self.num_tokens < MIN_TOKENS:
            raise UserError(
                f"num_tokens={self.num_tokens} is less than {MIN_TOKENS}, the least that exposes "
                "errors in positions"
            )

    @property
    def are_drawn(self) -> bool:
        """Whether the inputs are drawn from the seed."""
        return self.tokens is None and self.text is None

    def kind(self, path: Path, model: Model) -> str:
        """Returns what the inputs are, in words."""
        if not self.are_drawn:
            return "given inputs" if self.text is None else "given text"
        if not isinstance(model, TokenModel):
            return "random vectors"
        is_text = not self.random and tokenizer_of(path) is not None
        if not is_text:
            return "random tokens"
        more = " with rare, repeated and special tokens" if self.batch_size > 1 else ""
        return f"English text{more}"

    def inputs(self, path: Path, reference: Any, model: Model) -> Inputs:
        """Builds the inputs for the two models of the checkpoint at `path`."""
        if self.tokens is not None:
            return Inputs.of(self.tokens)
        if self.text is not None:
            return _tokenized(self.text, path, model, self.num_tokens)
        adapter = adapter_of(reference)
        drawn = draw(
            model,
            adapter.masks(reference),
            num_tokens=self.num_tokens,
            batch_size=self.batch_size,
            seed=self.seed,
            tokenizer=None if self.random else tokenizer_of(path),
        )
        return drawn.replace_token(adapter.padding_token(reference), model)


def check_checkpoint(
    path: str | Path,
    *,
    model: Model | None = None,
    levels: Sequence[str] | None = None,
    rules: Any = None,
    scratch: str | Path | None = None,
    dtype: str = FLOAT32.dtype,
    strict: bool = True,
    allow: Sequence[str] = (),
    **prompt: Any,
) -> Report:
    """Compares what JAX and PyTorch compute from the same checkpoint.

    PyTorch runs the model of transformers or, for a checkpoint of a source system, the model in
    `jaxllm.interop.reference`.

    Args:
        path: checkpoint folder in the format of Hugging Face or of a source system. Nothing is
            downloaded.
        model: the model to compare; by default the one that `load_pretrained` loads from `path`.
        levels: some of the levels of `compare`; by default all that exist for the model, except
            the training curve, which takes as long as all others together.
        rules: conversion rules of a custom model, see docs/rules.md. Their `reference` is the
            PyTorch side, and `path` may then be a file.
        scratch: for models larger than memory, a folder with room for the float32 weights and
            all activations of both sides, which are deleted afterwards. The training and
            generation levels do not exist then.
        dtype: the dtype that both sides hold weights and compute in: float32, bfloat16 or float16.
            The training and generation levels exist in float32 alone.
        strict: as for `load_pretrained`.
        allow: as for `load_pretrained`; transformers reads the config as the file says.
        prompt: the inputs: `tokens`, or `text`, or `num_tokens`, `batch_size` and `seed` of drawn
            inputs, and `random` for random tokens in place of text; see `InputOptions`.

    Returns:
        The report; `report.ok` says whether every level holds.

    Raises:
        ImportError: torch or transformers is not installed.
        CheckpointError: the folder is not a checkpoint that both sides can read.
        UserError: `dtype` is unknown, `num_tokens` is too small for a verdict, tokens and text are
            both given, or a level is unknown or does not exist for the model.
    """
    path, given = local_path(path), InputOptions(**prompt)
    select_levels(levels, list(LEVELS))  # before loading; not all exist for each model
    store = in_memory if scratch is None else on_disk(Path(scratch))
    if dtype not in PRECISIONS:
        raise UserError(f"dtype={dtype!r} is not one of {', '.join(PRECISIONS)}")
    announce("loading both sides")
    own = _places(path, model is not None, allow)
    reference, model = open_both(path, rules, model, store, dtype, strict, allow)
    inputs = given.inputs(path, reference, model)
    usual = [level for level in levels_of(model) if LEVELS[level].by_default]
    chosen = usual if levels is None else levels
    report = compare(reference, model, inputs, levels=chosen, store=store)
    others = not_compared(model, chosen, is_default=levels is None)
    seed = given.seed if given.are_drawn else None
    own |= {"subject": path.name, "inputs": given.kind(path, model), "seed": seed}
    return dataclasses.replace(report, not_compared=others, **own)


def _places(path: Path, is_given: bool, allow: Sequence[str]) -> dict[str, Any]:
    """Returns the report's paths, and notes on what both sides read from them."""
    where = str(path.resolve())
    if is_given:
        return {"paths": {"reference": where}}
    notes = (SAME_FILES.format(where), *allowance_notes(allow))
    return {"paths": {"model": where, "reference": where}, "notes": notes}


def _tokenized(text: str, path: Path, model: Model, num_tokens: int) -> Inputs:
    """Tokenizes `text` into every input sequence that the model takes."""
    sequences, ids, given = sequences_of(model), {}, {}
    for name, elements in sequences.items():
        if not elements.are_tokens:
            raise UserError(
                f"text is given, but a {type(model).__name__} takes vectors; give vectors instead"
            )
        ids[name] = text_ids(text, path, elements.size, is_source=name == "source")
        given[name] = windows(ids[name], min(num_tokens, elements.longest), 0)[None]

    return Inputs(**given, further=following_text(ids))
