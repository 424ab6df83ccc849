"""Synthetic tasks with randomly generated examples: a model can be seen to learn without data.

The sizes of the examples follow from the model and `seq_len`, which is also the source length.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np

from jaxllm.config import EncoderDecoderConfig
from jaxllm.errors import UserError
from jaxllm.models import Decoder, EncoderDecoder, Model, SequenceModel, SequenceToSequence

from .batches import Batch, Examples, digest
from .held_out import check_split
from .vectors import check_autoregressive, check_teacher_forcing, expected_shapes, make_batch

Row = dict[str, np.ndarray]
Draw = Callable[[np.random.Generator, bool], Row]  # (rng, is_held) -> one example
TRAIN_ROWS, HELD_OUT_ROWS = 2**20, 2**10
NUM_COLOURS = 8  # the corners of the RGB cube
NUM_WAVES = 2  # sinusoids summed in each dimension


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Synthetic data: the name of the task and a seed.

    - `sum`: the sum of the input vectors; for a pooled SequenceModel.
    - `copy`: the source, tokens or vectors; for an EncoderDecoder or a SequenceToSequence.
    - `waves`: the next vector of a sum of sinusoids; for a causal SequenceModel.
    - `colour`: the colour of an image, as a token; for a Decoder with vision.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    task: Literal["sum", "copy", "waves", "colour"]
    seed: int = 0  # for the examples and their order

    def __post_init__(self) -> None:
        check_split(0, self.seed)

    def load(self, model: Model, seq_len: int) -> Examples:
        """Creates the examples. Raises UserError if the model cannot be trained on the task."""
        draw = TASKS[self.task](model, seq_len)
        train, held_out = (
            Drawn(draw, self.seed, is_held, count)
            for is_held, count in ((False, TRAIN_ROWS), (True, HELD_OUT_ROWS))
        )
        # The first row reveals other sizes, and a NumPy that generates other random numbers.
        digests = {name: digest(array) for name, array in train.take(np.arange(1)).items()}
        return Examples(train, held_out, {"task": self.task, "seq_len": seq_len, **digests})


@dataclass(frozen=True)
class Drawn:
    """Rows generated on request, each with its own random number generator."""

    draw: Draw
    seed: int
    is_held: bool
    count: int

    def __len__(self) -> int:
        return self.count

    @property
    def num_tokens(self) -> int:
        """Targets of all rows, which are alike."""
        return self.count * int(self.take(np.arange(1))["mask"].sum())

    def take(self, rows: np.ndarray) -> Batch:
        """Generates the rows with these numbers."""
        seeds = ((self.seed, int(self.is_held), int(row)) for row in rows)
        drawn = [self.draw(np.random.default_rng(seed), self.is_held) for seed in seeds]
        return {name: np.stack([row[name] for row in drawn]) for name in drawn[0]}


def draw_sum(model: Model, seq_len: int) -> Draw:
    """Returns a generator of vectors, uniform in [-1, 1], with their sum as the target."""
    if not isinstance(model, SequenceModel) or not model.config.pooled:
        raise _unfit("sum", "a SequenceModel with pooled=True", model)
    _check_equal("sum", model, "input_dim", "output_dim")
    (_, *shape), _ = expected_shapes(model, 1, seq_len)

    def draw(rng: np.random.Generator, is_held: bool) -> Row:
        x_TI = rng.uniform(-1, 1, shape).astype(np.float32)
        return make_batch(x_TI, x_TI.sum(axis=0))

    return draw


def draw_copy(model: Model, seq_len: int) -> Draw:
    """Returns a generator of sources, tokens or vectors, that are also the targets."""
    if isinstance(model, EncoderDecoder):
        if (vocab_size := _shared_vocab_size(model.config)) < 3:
            raise UserError(
                f"task 'copy' needs vocabularies of at least 3 tokens, not {vocab_size}: 0, and an "
                "odd and an even token to copy"
            )
        return partial(copied_tokens, model.config, seq_len)
    if not isinstance(model, SequenceToSequence):
        raise _unfit("copy", "an EncoderDecoder or a SequenceToSequence", model)
    check_teacher_forcing(model.config)
    if model.config.source_dim != model.config.decoder.output_dim:
        raise UserError(
            "task 'copy' needs source_dim to equal decoder.output_dim, but they are "
            f"{model.config.source_dim} and {model.config.decoder.output_dim}"
        )
    (_, *shape), _ = expected_shapes(model, 1, seq_len)

    def draw(rng: np.random.Generator, is_held: bool) -> Row:
        x_SI = rng.uniform(-1, 1, shape).astype(np.float32)
        return make_batch(x_SI, x_SI)

    return draw


def copied_tokens(
    config: EncoderDecoderConfig, seq_len: int, rng: np.random.Generator, is_held: bool
) -> Row:
    """Generates a source of tokens other than 0, and the same tokens after the start token.

    The tokens of a training row have an even sum and those of a held-out row an odd one. Without
    this, short sequences would occur in both sets.
    """
    vocab_size = _shared_vocab_size(config)
    tokens = rng.integers(1, vocab_size, seq_len, dtype=np.int32)
    while tokens.sum() % 2 != is_held:
        tokens = rng.integers(1, vocab_size, seq_len, dtype=np.int32)
    mask = np.ones(seq_len, bool)
    target = np.insert(tokens, 0, config.start_token or 0)
    return {"source": tokens, "source_mask": mask, "tokens": target, "mask": mask}


def _shared_vocab_size(config: EncoderDecoderConfig) -> int:
    """Returns the number of tokens that are both in the source and in the target vocabulary."""
    return min(config.vocab_size, config.source_vocab_size or config.vocab_size)


def draw_waves(model: Model, seq_len: int) -> Draw:
    """Returns a generator of sums of sinusoids, with the next vector as the target.

    Each row has its own frequencies and phases.
    """
    check_autoregressive(model)
    assert isinstance(model, SequenceModel), "check_autoregressive accepts no other class"
    _check_equal("waves", model, "input_dim", "output_dim")
    width = model.config.input_dim

    def draw(rng: np.random.Generator, is_held: bool) -> Row:
        frequency = rng.uniform(0.2, 1, (NUM_WAVES, width))  # radians from one vector to the next
        phase = rng.uniform(0, 2 * np.pi, (NUM_WAVES, width))
        angles = frequency * np.arange(seq_len + 1)[:, None, None] + phase
        x_TI = np.sin(angles).sum(axis=1).astype(np.float32)
        return make_batch(x_TI[:-1], x_TI[1:])

    return draw


def draw_colour(model: Model, seq_len: int) -> Draw:
    """Returns a generator of noisy images of one colour: image tokens, then the colour's token."""
    if not isinstance(model, Decoder) or (vision := model.config.vision) is None:
        raise _unfit("colour", "a Decoder whose vision has an image_token", model)
    if vision.image_token is None:
        raise _unfit("colour", "a Decoder whose vision has an image_token", model)
    num_tokens, image_token = vision.num_patches // vision.shuffle**2, vision.image_token
    vocab_size = model.config.vocab_size
    problems = [
        f"task 'colour' needs {requirement}"
        for requirement, holds in {
            f"seq_len={num_tokens}, the number of tokens per image, not {seq_len}": (
                seq_len == num_tokens
            ),
            f"vision.num_channels=3, not {vision.num_channels}": vision.num_channels == 3,
            f"vision.image_token of at least {NUM_COLOURS}, not {image_token}: smaller tokens "
            "stand for the colours": image_token >= NUM_COLOURS,
            f"vision.image_token={image_token} to be less than vocab_size={vocab_size}": (
                image_token < vocab_size
            ),
        }.items()
        if not holds
    ]
    if problems:
        raise UserError("\n".join(problems))
    shape = (3, vision.image_size, vision.image_size)

    def draw(rng: np.random.Generator, is_held: bool) -> Row:
        colour = rng.integers(NUM_COLOURS)
        level = 2 * (colour >> np.arange(3)[:, None, None] & 1) - 1  # -1 or 1 for each channel
        image = level * rng.uniform(0.3, 1) + rng.standard_normal(shape)
        tokens = np.append(np.full(num_tokens, image_token), colour).astype(np.int32)
        return {
            "tokens": tokens,
            "mask": np.arange(num_tokens) == num_tokens - 1,
            "images": image.astype(np.float32),
        }

    return draw


TASKS: dict[str, Callable[[Model, int], Draw]] = {
    "sum": draw_sum,
    "copy": draw_copy,
    "waves": draw_waves,
    "colour": draw_colour,
}


def _unfit(task: str, required: str, model: Model) -> UserError:
    fields: Any = model.config
    details = f" with pooled={fields.pooled}" if isinstance(model, SequenceModel) else ""
    details += f" with vision={fields.vision}" if isinstance(model, Decoder) else ""
    return UserError(
        f"task {task!r} trains {required}, but the model of this run is "
        f"{type(model).__name__}{details}"
    )


def _check_equal(task: str, model: SequenceModel, one: str, other: str) -> None:
    a, b = getattr(model.config, one), getattr(model.config, other)
    if a != b:
        raise UserError(f"task {task!r} needs {one} to equal {other}, but they are {a} and {b}")
