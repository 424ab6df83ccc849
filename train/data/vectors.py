"""Vectors of numbers in a file of NumPy: sequences, and what a model is to make of them."""

from dataclasses import dataclass
from typing import ClassVar
from zipfile import BadZipFile

import numpy as np

from jaxllm.config import SequenceConfig, SequenceToSequenceConfig
from jaxllm.errors import UserError
from jaxllm.models import Model, SequenceModel, SequenceToSequence

from .batches import Batch, Examples, Table
from .held_out import check_split, split_held_out


@dataclass(frozen=True, kw_only=True)
class VectorsConfig:
    """Where vectors come from, and what part of them is never trained on.

    The .npz has `inputs`, a sequence in each row: (rows, seq_len, numbers of a vector). Its
    `targets` are a vector for each row, of a pooled model, or a sequence of them. Without
    `targets` a model is to tell the next vector of `inputs`, which then are one longer.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    vectors: str  # the .npz
    held_out: float = 0.02  # fraction of the rows
    seed: int = 0  # of the order in which rows are seen

    def __post_init__(self) -> None:
        check_split(self.held_out, self.seed)

    def load(self, model: Model, seq_len: int) -> Examples:
        """The rows of the file. Raises UserError or OSError naming what is bad."""
        if not isinstance(model, SequenceModel | SequenceToSequence):
            raise UserError(
                "vectors train a SequenceModel or a SequenceToSequence, not the "
                f"{type(model).__name__} of this run"
            )
        if isinstance(model, SequenceToSequence):
            check_teacher_forcing(model.config)
        inputs, targets = read_vectors(self.vectors)
        if targets is None:
            check_autoregressive(model)
            inputs, targets = inputs[:, :-1], inputs[:, 1:]
        expected = expected_shapes(model, len(inputs), seq_len)
        found = inputs.shape, targets.shape
        if found != expected:
            raise UserError(
                f"{self.vectors}: inputs and targets are {found[0]} and {found[1]}; this model "
                f"and seq_len={seq_len} need {expected[0]} and {expected[1]}"
            )
        is_held = np.array(split_held_out([row.tobytes() for row in inputs], self.held_out), bool)
        train, held_out = (
            Table(make_batch(inputs[chosen], targets[chosen])) for chosen in (~is_held, is_held)
        )
        return Examples(
            train, held_out, {"train_rows": train.digest(), "held_out_rows": held_out.digest()}
        )


def read_vectors(path: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The inputs and targets of an .npz, float32. Raises UserError naming what is not so."""
    try:
        # Opened here: NumPy leaves open what it cannot read.
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            found = {name: np.asarray(file[name]) for name in file.files}
    except (ValueError, EOFError, TypeError, BadZipFile) as error:  # one array, or no .npz at all
        raise UserError(f"{path} is not an .npz of arrays of numbers: {error}") from error
    if "inputs" not in found or not found.keys() <= {"inputs", "targets"}:
        raise UserError(f"{path} holds {', '.join(found)}; it needs inputs, and may have targets")
    problems = [
        f"{path}: {name} is {array.dtype} {array.shape}, not finite numbers by row"
        for name, array in found.items()
        if array.ndim < 2 or array.dtype.kind not in "fiu" or not np.isfinite(array).all()
    ]
    if len({len(array) for array in found.values()}) > 1:
        problems.append(f"{path}: inputs and targets have different numbers of rows")
    if problems:
        raise UserError("\n".join(problems))
    inputs, targets = found["inputs"].astype(np.float32), found.get("targets")
    return inputs, None if targets is None else targets.astype(np.float32)


def expected_shapes(
    model: SequenceModel | SequenceToSequence, rows: int, seq_len: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What inputs and targets a model of vectors takes, BTI or BSI and BTO or BO."""
    config = model.config
    if isinstance(config, SequenceConfig):
        target = (rows, config.output_dim) if config.pooled else (rows, seq_len, config.output_dim)
        return (rows, seq_len, config.input_dim), target
    return (rows, seq_len, config.source_dim), (rows, seq_len, config.decoder.output_dim)


def check_autoregressive(model: Model) -> None:
    """Raises UserError if a model cannot learn to tell the next vector."""
    config = model.config
    if not isinstance(config, SequenceConfig) or config.pooled or not config.attention.causal:
        said = (
            f"pooled={config.pooled} and attention.causal={config.attention.causal}"
            if isinstance(config, SequenceConfig)
            else type(model).__name__
        )
        raise UserError(
            "the next vector is told by a SequenceModel of pooled=False and "
            "attention.causal=True, "
            f"not by {said}"
        )


def check_teacher_forcing(config: SequenceToSequenceConfig) -> None:
    """Raises UserError if a decoder cannot be given the target as far as it has come."""
    decoder = config.decoder
    if decoder.input_dim != decoder.output_dim or not decoder.attention.causal:
        raise UserError(
            "a decoder that is given its own outputs needs decoder.attention.causal, which "
            f"is {decoder.attention.causal}, and decoder.input_dim={decoder.input_dim} to be "
            f"decoder.output_dim={decoder.output_dim}"
        )


def make_batch(inputs: np.ndarray, targets: np.ndarray) -> Batch:
    """Rows whose targets, of every vector or of a whole sequence, all count."""
    return {"inputs": inputs, "targets": targets, "mask": np.ones(targets.shape[:-1], bool)}
