"""Small tasks whose examples are drawn, not read: to see a model learn without any data.

Their sizes are those of the model. Tokens are `seq_len` to a sequence, of a source as well.
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
Draw = Callable[[np.random.Generator, bool], Row]  # a row that is held out, or one that is not
TRAIN_ROWS, HELD_OUT_ROWS = 2**20, 2**10
NUM_COLOURS = 8  # the corners of the cube of red, green and blue
NUM_WAVES = 2


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """A task: to sum vectors, to copy tokens or vectors, to tell how waves go on, to name a colour.

    `sum` is for a pooled SequenceModel, `copy` for an EncoderDecoder or a SequenceToSequence,
    `waves` for a causal SequenceModel, `colour` for a Decoder with vision.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    task: Literal["sum", "copy", "waves", "colour"]
    seed: int = 0

    def __post_init__(self) -> None:
        check_split(0, self.seed)

    def load(self, model: Model, seq_len: int) -> Examples:
        """The task as examples. Raises UserError if the model cannot be trained on it."""
        draw = TASKS[self.task](model, seq_len)
        train, held_out = (
            Drawn(draw, self.seed, is_held, count)
            for is_held, count in ((False, TRAIN_ROWS), (True, HELD_OUT_ROWS))
        )
        # A row says the sizes, and whether NumPy still draws as it did.
        known = {name: digest(array) for name, array in train.take(np.arange(1)).items()}
        return Examples(train, held_out, {"task": self.task, "seq_len": seq_len, **known})


@dataclass(frozen=True)
class Drawn:
    """Rows that are drawn when they are asked for, each by a generator of its own."""

    draw: Draw
    seed: int
    is_held: bool
    count: int

    def __len__(self) -> int:
        return self.count

    def take(self, rows: np.ndarray) -> Batch:
        """The rows of these numbers."""
        seeds = ((self.seed, int(self.is_held), int(row)) for row in rows)
        drawn = [self.draw(np.random.default_rng(seed), self.is_held) for seed in seeds]
        return {name: np.stack([row[name] for row in drawn]) for name in drawn[0]}


def draw_sum(model: Model, seq_len: int) -> Draw:
    """Vectors between -1 and 1, and their sum."""
    if not isinstance(model, SequenceModel) or not model.config.pooled:
        raise _unfit("sum", "a SequenceModel of pooled=True", model)
    _check_equal(model, "input_dim", "output_dim")
    (_, *shape), _ = expected_shapes(model, 1, seq_len)

    def draw(rng: np.random.Generator, is_held: bool) -> Row:
        x_TI = rng.uniform(-1, 1, shape).astype(np.float32)
        return make_batch(x_TI, x_TI.sum(axis=0))

    return draw


def draw_copy(model: Model, seq_len: int) -> Draw:
    """A source, and itself as the target."""
    if isinstance(model, EncoderDecoder):
        return partial(copied_tokens, model.config, seq_len)
    if not isinstance(model, SequenceToSequence):
        raise _unfit("copy", "an EncoderDecoder or a SequenceToSequence", model)
    check_teacher_forcing(model.config)
    if model.config.source_dim != model.config.decoder.output_dim:
        raise UserError(
            f"task 'copy' needs source_dim={model.config.source_dim} to be "
            f"decoder.output_dim={model.config.decoder.output_dim}"
        )
    (_, *shape), _ = expected_shapes(model, 1, seq_len)

    def draw(rng: np.random.Generator, is_held: bool) -> Row:
        x_SI = rng.uniform(-1, 1, shape).astype(np.float32)
        return make_batch(x_SI, x_SI)

    return draw


def copied_tokens(
    config: EncoderDecoderConfig, seq_len: int, rng: np.random.Generator, is_held: bool
) -> Row:
    """Tokens other than 0, and the same behind the start token.

    Their sum is even, of a row that is held out odd: so few tokens would else meet again.
    """
    known = min(config.vocab_size, config.source_vocab_size or config.vocab_size)
    tokens = rng.integers(1, known, seq_len, dtype=np.int32)
    while tokens.sum() % 2 != is_held:
        tokens = rng.integers(1, known, seq_len, dtype=np.int32)
    every = np.ones(seq_len, bool)
    target = np.insert(tokens, 0, config.start_token or 0)
    return {"source": tokens, "source_mask": every, "tokens": target, "mask": every}


def draw_waves(model: Model, seq_len: int) -> Draw:
    """Sums of sinusoids, their frequencies and phases drawn anew for each row, and what is next."""
    check_autoregressive(model)
    assert isinstance(model, SequenceModel), "as checked"
    _check_equal(model, "input_dim", "output_dim")
    width = model.config.input_dim

    def draw(rng: np.random.Generator, is_held: bool) -> Row:
        frequency = rng.uniform(0.2, 1, (NUM_WAVES, width))  # radians from one vector to the next
        phase = rng.uniform(0, 2 * np.pi, (NUM_WAVES, width))
        angles = frequency * np.arange(seq_len + 1)[:, None, None] + phase
        x_TI = np.sin(angles).sum(axis=1).astype(np.float32)
        return make_batch(x_TI[:-1], x_TI[1:])

    return draw


def draw_colour(model: Model, seq_len: int) -> Draw:
    """A noisy image of one colour, in the places that its tokens hold, and then the colour's."""
    vision = model.config.vision if isinstance(model, Decoder) else None
    if vision is None or vision.image_token is None:
        raise _unfit("colour", "a Decoder whose vision has an image_token", model)
    places, image_token = vision.num_patches // vision.shuffle**2, vision.image_token
    problems = [
        f"task 'colour' needs {wanted}"
        for wanted, holds in {
            f"seq_len={places}, an image's places, not {seq_len}": seq_len == places,
            f"vision.num_channels=3, not {vision.num_channels}": vision.num_channels == 3,
            f"{NUM_COLOURS} tokens for colours before vision.image_token={image_token}": (
                image_token >= NUM_COLOURS
            ),
        }.items()
        if not holds
    ]
    if problems:
        raise UserError("\n".join(problems))
    shape = (3, vision.image_size, vision.image_size)

    def draw(rng: np.random.Generator, is_held: bool) -> Row:
        colour = rng.integers(NUM_COLOURS)
        level = 2 * (colour >> np.arange(3)[:, None, None] & 1) - 1  # of each channel, -1 or 1
        image = level * rng.uniform(0.3, 1) + rng.standard_normal(shape)
        tokens = np.append(np.full(places, image_token), colour).astype(np.int32)
        return {
            "tokens": tokens,
            "mask": np.arange(places) == places - 1,
            "images": image.astype(np.float32),
        }

    return draw


TASKS: dict[str, Callable[[Model, int], Draw]] = {
    "sum": draw_sum,
    "copy": draw_copy,
    "waves": draw_waves,
    "colour": draw_colour,
}


def _unfit(task: str, wanted: str, model: Model) -> ValueError:
    fields: Any = model.config
    said = f", pooled={fields.pooled}" if isinstance(model, SequenceModel) else ""
    said += f", vision={fields.vision}" if isinstance(model, Decoder) else ""
    return ValueError(
        f"task {task!r} trains {wanted}; the model of this run is {type(model).__name__}{said}"
    )


def _check_equal(model: SequenceModel, one: str, other: str) -> None:
    given = [f"{name}={getattr(model.config, name)}" for name in (one, other)]
    if getattr(model.config, one) != getattr(model.config, other):
        raise UserError(f"the task needs {given[0]} to be {given[1]}")
