"""Parity of a checkpoint on disk: PyTorch runs it, we run it, and the two are compared."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.config import EncoderDecoderConfig
from jaxllm.errors import UserError
from jaxllm.interop.families import FAMILIES, Family
from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.interop.loading.checkpoint_dir import read_json
from jaxllm.interop.loading.lazy_model import open_pretrained
from jaxllm.interop.loading.load import load_pretrained
from jaxllm.interop.reference.transformers_models import require_torch
from jaxllm.models import Model

from .alignment.adapters import calling_of
from .alignment.inputs import Inputs, draw, elements_of
from .alignment.overrides import environment
from .alignment.plain_modules import load_plain
from .alignment.prompt import MIN_TOKENS, text_tokens
from .comparison import compare
from .levels.table import LEVELS, levels_of
from .numerics.array_store import Shelf, in_memory, on_disk, parameters_on
from .rendered_report import Report


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """What both sides are given: tokens, or a text, or by default random inputs.

    Raises UserError if tokens and text are both given, or `num_tokens` are too few for a verdict.
    """

    tokens: np.ndarray | Inputs | None = None  # BT, token ids; or BTI, vectors
    text: str | None = None  # cut or repeated to `num_tokens`; it is the source as well
    num_tokens: int = 384  # of each row of random inputs, if the model has as many positions
    batch_size: int = 2  # the rows of random inputs, of which the last is padded
    seed: int = 0  # of the random inputs

    def __post_init__(self) -> None:
        if self.tokens is not None and self.text is not None:
            raise UserError("tokens and text are both given")
        if self.num_tokens < MIN_TOKENS:
            raise UserError(
                f"num_tokens={self.num_tokens} is less than {MIN_TOKENS}: wrong positions show late"
            )

    @property
    def is_random(self) -> bool:
        """Whether the seed decides."""
        return self.tokens is None and self.text is None

    def inputs(self, path: Path, reference: Any, model: Model) -> Inputs:
        """As the two models of the checkpoint at `path` take them."""
        if self.tokens is not None:
            return Inputs.of(self.tokens)
        if self.text is not None:
            return _spelt(self.text, path, model, self.num_tokens)
        calling = calling_of(reference)
        drawn = draw(
            model,
            calling.masks(reference),
            num_tokens=self.num_tokens,
            batch_size=self.batch_size,
            seed=self.seed,
        )
        return drawn.without(calling.padding(reference), model)


def check_checkpoint(
    path: str | Path,
    *,
    model: Model | None = None,
    levels: Sequence[str] | None = None,
    rules: Any = None,
    scratch: str | Path | None = None,
    **prompt: Any,
) -> Report:
    """Whether we compute from a checkpoint what PyTorch computes from it.

    That is transformers, or for a source system the model of `jaxllm.interop.reference`.

    Args:
        path: a folder of Hugging Face, or of a source system. Nothing is downloaded.
        model: what to compare; by default what `load_pretrained` makes of the folder.
        levels: of those of `compare`; by default all that there are but the curve, which takes as
            long as all others together.
        rules: of a model of your own, as docs/rules.md says, which its own `reference` runs;
            `path` may then be a file.
        scratch: of a model larger than memory, a folder with room for its weights in float32 and
            all that both compute, which are gone afterwards. There are no levels then that train
            or generate.
        prompt: what to compare on: `tokens`, or a `text`, or, of random inputs, `num_tokens`,
            `batch_size` and `seed`; see `Prompt`.

    Raises:
        ImportError: torch or transformers is not installed.
        CheckpointError: the folder is not a checkpoint that both sides can read.
        UserError: `num_tokens` are too few for a verdict, or tokens and text are both given.
    """
    path, given = Path(path), Prompt(**prompt)
    shelf = in_memory if scratch is None else on_disk(Path(scratch))
    reference, model = open_both(path, rules, model, shelf)
    inputs = given.inputs(path, reference, model)
    usual = [level for level in levels_of(model) if LEVELS[level].by_default]
    levels = usual if levels is None else levels
    report = compare(reference, model, inputs, levels=levels, shelf=shelf)
    seed = given.seed if given.is_random else None
    return dataclasses.replace(report, subject=path.name, seed=seed)


def open_both(
    path: Path, rules: Any = None, model: Model | None = None, shelf: Shelf = in_memory
) -> tuple[Any, Model]:
    """PyTorch's model of a checkpoint and ours, or this one; see `check_checkpoint`."""
    family = None if rules is not None else _family_of(path)
    require_torch()
    if model is None:
        load = load_pretrained if shelf is in_memory else open_pretrained
        model = load(path, dtype="float32", rules=rules)
    if family is None or family.reference is not None:
        return load_plain(path, rules, shelf), model
    return _load_reference(path, family, shelf), model


def _spelt(text: str, path: Path, model: Model, num_tokens: int) -> Inputs:
    """A text as all the sequences that a model is given."""
    given = {}
    for name, elements in elements_of(model).items():
        if not elements.are_tokens:
            raise UserError(f"text for a {type(model).__name__}, which is given vectors")
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
    with _no_progress_bars(), nullcontext() if shelf is in_memory else _one_by_one(shelf):
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
def _one_by_one(shelf: Shelf) -> Iterator[None]:
    """Has transformers put each parameter on the shelf before it reads the next."""
    with environment("HF_DEACTIVATE_ASYNC_LOAD", "1"), parameters_on(shelf):
        yield


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
