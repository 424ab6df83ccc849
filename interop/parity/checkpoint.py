"""Parity of a checkpoint on disk: transformers runs it, we run it, and the two are compared."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxllm.interop.directory import read_json
from jaxllm.interop.families import FAMILIES
from jaxllm.interop.hugging_face import require_torch
from jaxllm.interop.load import load_pretrained
from jaxllm.interop.tensors import CheckpointError
from jaxllm.models.decoder import Decoder

from .judge import LEVELS, compare
from .plain import NOT_PLAIN, load_plain
from .prompt import MIN_TOKENS, random_tokens, text_tokens
from .report import Report

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A curve takes as long as all other levels together, or longer: each of its steps is three
# forward and three backward passes of the reference, which is also trained in two other ways.
USUAL = tuple(level for level in LEVELS if level != "curve")


def check_checkpoint(
    path: str | Path,
    *,
    tokens: np.ndarray | None = None,
    text: str | None = None,
    num_tokens: int = 384,
    batch_size: int = 2,
    seed: int = 0,
    model: Decoder | None = None,
    levels: Sequence[str] | None = None,
    rules: Any = None,
) -> Report:
    """Whether we compute from a checkpoint what transformers computes from it.

    Args:
        path: a folder of Hugging Face. Nothing is downloaded.
        tokens: BT, token ids to compare on; by default random ones.
        text: instead, a text; it is cut or repeated to `num_tokens`.
        num_tokens: the length of each row of random tokens.
        batch_size: the number of rows of random tokens.
        seed: of the random tokens.
        model: what to compare; by default what `load_pretrained` makes of the folder.
        levels: of those of `compare`; by default all but the curve.
        rules: of a model of your own, as docs/rules.md says, which its own `reference` runs
            instead of transformers; `path` may then be a file. All but generate can be compared.

    Raises:
        ImportError: torch or transformers is not installed.
        CheckpointError: the folder is not a checkpoint that both sides can read.
        ValueError: `num_tokens` are too few for a verdict, or tokens and text are both given.
    """
    if tokens is not None and text is not None:
        raise ValueError("tokens and text are both given")
    if num_tokens < MIN_TOKENS:
        raise ValueError(
            f"num_tokens={num_tokens} is less than {MIN_TOKENS}: wrong positions show late"
        )
    path = Path(path)
    if rules is None:
        _check_folder(path)
    elif beyond := set(levels or ()) & set(NOT_PLAIN):
        raise ValueError(f"levels={sorted(beyond)} need a model of transformers, not rules")
    require_torch()
    if model is None:
        model = load_pretrained(path, dtype="float32", rules=rules)
    possible = [level for level in USUAL if rules is None or level not in NOT_PLAIN]
    vocab_size = model.config.vocab_size
    is_random = tokens is None and text is None
    if text is not None:
        tokens = text_tokens(text, path, vocab_size, num_tokens)
    elif tokens is None:
        tokens = random_tokens(vocab_size, batch_size, num_tokens, seed)
    reference = _load_reference(path) if rules is None else load_plain(path, rules)
    report = compare(reference, model, tokens, levels=possible if levels is None else levels)
    return dataclasses.replace(report, subject=path.name, seed=seed if is_random else None)


def _check_folder(path: Path) -> None:
    """Refuses what transformers cannot run, or what there are no taps for."""
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder")
    config_file = path / "config.json"
    if not config_file.is_file():
        raise CheckpointError(
            f"{path} has no config.json, and transformers, which runs the reference, needs one: "
            f"`jaxllm convert {path} NEW --to hf` makes such a folder"
        )
    given = read_json(config_file).get("model_type")
    known = [family.model_type for family in FAMILIES if family.format == "hf"]
    if given not in known:
        names = ", ".join(map(str, known))
        raise CheckpointError(f"{path} is of model_type {given!r}; known are {names}")


def _load_reference(path: Path) -> "PreTrainedModel":
    import torch
    from transformers import AutoModelForCausalLM

    with _no_progress_bars():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
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
