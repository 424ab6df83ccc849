"""Vector data: input sequences and their targets from an .npz file."""

from dataclasses import dataclass
from typing import ClassVar
from zipfile import BadZipFile

import numpy as np

from jaxllm.config import SequenceConfig, SequenceToSequenceConfig
from jaxllm.errors import UserError
from jaxllm.hub import local_path
from jaxllm.models import Model, SequenceModel, SequenceToSequence
from jaxllm.untrusted.array_files import check_archive
from jaxllm.untrusted.regular_files import check_is_regular

from .batches import ArrayRows, Batch, Examples
from .held_out import check_split, split_held_out


@dataclass(frozen=True, kw_only=True)
class VectorsConfig:
    """Vector data: the .npz file and the fraction that is held out.

    The file has `inputs` (rows, seq_len, I) and, optionally, `targets`: (rows, O) for a pooled
    model, otherwise (rows, seq_len, O). Without `targets` the model learns to predict the next
    vector of `inputs`, which then must have seq_len + 1 vectors per row.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    vectors: str  # .npz file with inputs and, optionally, targets
    held_out: float = 0.02  # fraction of the rows that is never trained on
    seed: int = 0  # for the order of the training rows
    max_epochs: int | None = None  # how often a run may take each row; None: as often as it needs

    def __post_init__(self) -> None:
        check_split(self.held_out, self.seed, self.max_epochs)

    def load(self, model: Model, seq_len: int) -> Examples:
        """Loads the rows of the file for `model`.

        Raises:
            UserError: the model cannot be trained on vectors, or the file's content or shapes do
                not fit.
            OSError: the file cannot be read.
        """
        if not isinstance(model, SequenceModel | SequenceToSequence):
            raise UserError(
                "vectors train a SequenceModel or a SequenceToSequence, but the model class of "
                f"this run is {type(model).__name__}"
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
                f"{self.vectors}: inputs and targets have the shapes {found[0]} and {found[1]}; "
                f"this model with seq_len={seq_len} needs {expected[0]} and {expected[1]}"
            )
        is_held = np.array(split_held_out([row.tobytes() for row in inputs], self.held_out), bool)
        train, held_out = (
            ArrayRows(make_batch(inputs[chosen], targets[chosen])) for chosen in (~is_held, is_held)
        )
        return Examples(
            train, held_out, {"train_rows": train.digest(), "held_out_rows": held_out.digest()}
        )


def read_vectors(path: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads `inputs` and, if present, `targets` from an .npz file, as float32.

    Raises:
        UserError: the file is not an .npz, has other arrays, or an array is not numeric, not
            finite or has fewer than two dimensions.
    """
    try:
        # Opened explicitly, because NumPy does not close a file that it cannot read.
        place = local_path(path)
        check_is_regular(place)
        with place.open("rb") as opened:
            check_archive(opened)
            with np.load(opened, allow_pickle=False) as file:
                found = {name: np.asarray(file[name]) for name in file.files}
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (ValueError, EOFError, TypeError, BadZipFile, MemoryError) as error:
        raise UserError(f"{path} is not an .npz file of numeric arrays: {error}") from error
    if "inputs" not in found or not found.keys() <= {"inputs", "targets"}:
        raise UserError(
            f"{path} holds the arrays {', '.join(found) or 'none'}; it must have inputs, may have "
            "targets, and nothing else"
        )
    problems = [
        f"{path}: {name} has dtype {array.dtype} and shape {array.shape}; it must hold finite "
        "numbers and have at least two dimensions"
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
    """Returns the shapes of inputs and targets that a model takes.

    Inputs are (rows, T, I); targets are (rows, T, O), or (rows, O) for a pooled model.
    """
    config = model.config
    if isinstance(config, SequenceConfig):
        target = (rows, config.output_dim) if config.pooled else (rows, seq_len, config.output_dim)
        return (rows, seq_len, config.input_dim), target
    return (rows, seq_len, config.source_dim), (rows, seq_len, config.decoder.output_dim)


def check_autoregressive(model: Model) -> None:
    """Raises UserError unless the model can learn to predict the next vector."""
    config = model.config
    if not isinstance(config, SequenceConfig) or config.pooled or not config.attention.causal:
        found = (
            f"pooled={config.pooled} and attention.causal={config.attention.causal}"
            if isinstance(config, SequenceConfig)
            else f"the model class {type(model).__name__}"
        )
        raise UserError(
            "predicting the next vector needs a SequenceModel with pooled=False and "
            f"attention.causal=True; this run has {found}"
        )


def check_teacher_forcing(config: SequenceToSequenceConfig) -> None:
    """Raises UserError unless the decoder can be trained on its shifted targets as inputs."""
    decoder = config.decoder
    if decoder.input_dim != decoder.output_dim or not decoder.attention.causal:
        raise UserError(
            "a decoder whose inputs are its previous outputs needs decoder.attention.causal=True "
            "and decoder.input_dim equal to decoder.output_dim; this model has "
            f"causal={decoder.attention.causal}, input_dim={decoder.input_dim} and "
            f"output_dim={decoder.output_dim}"
        )


def make_batch(inputs: np.ndarray, targets: np.ndarray) -> Batch:
    """Returns a batch in which every target counts, whether per vector or per sequence."""
    return {"inputs": inputs, "targets": targets, "mask": np.ones(targets.shape[:-1], bool)}
