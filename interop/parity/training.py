"""The levels of training: gradients, one step of the optimizer, and a curve of many."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import optax

from jaxllm.interop.rules import BoundRule
from jaxllm.models.decoder import Decoder

from . import metrics, tolerance
from .noise import WAYS
from .prompt import random_tokens
from .recipe import Recipe, Training
from .rows import LossResult, TensorResult
from .spelling import decayed, imported
from .train_jax import train_model
from .train_torch import train_reference

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Arrays = Mapping[str, np.ndarray]

# A gradient that differs by a tenth when the reference computes it in another way is what is left
# of sums that cancel, such as that of a key's bias without RoPE. It counts as a part of all.
NOTHING_BUT_NOISE = 0.1

# PyTorch divides by the norm plus this when it clips; optax does not.
CLIP_EPS = 1e-6

# Elements of a gradient that are so many times its noise have an update that is not noise: Adam
# divides by their size, so that of an element which is noise is too.
ABOVE_NOISE = 1e3

Runs = tuple[Training, Training, Sequence[Training]]  # ours, the reference's, and in other ways


def train_both(
    reference: "PreTrainedModel",
    model: Decoder,
    rules: Sequence[BoundRule],
    tokens_BT: np.ndarray,
    steps: int,
    recipe: Recipe,
    optimizer: optax.GradientTransformation | None,
) -> Runs:
    """Both sides trained from the same weights on the same batches, everything by our names.

    `rules` are those of a model whose layers are one by one; `model` may have them stacked.
    """
    embeddings: Any = reference.get_input_embeddings()
    unused = getattr(embeddings, "padding_idx", None)
    batches = _batches(tokens_BT, model.config.vocab_size, steps, unused)
    ours = train_model(model, batches, optimizer or recipe.optimizer(model))
    decays = decayed(rules)

    def theirs(attention: str) -> Training:
        run = train_reference(reference, batches, recipe, decays, attention)
        first = {what: imported(rules, arrays) for what, arrays in run.first.items()}
        return dataclasses.replace(run, first=first)

    plain = theirs("eager")
    others = []
    for attention, otherwise in WAYS:
        with otherwise(reference):
            others.append(theirs(attention))
    return ours, plain, others


def _batches(
    tokens_BT: np.ndarray, vocab_size: int, steps: int, unused: int | None
) -> list[np.ndarray]:
    """The tokens themselves, then others of the same shape; another token instead of `unused`.

    That is the one for padding, of which PyTorch drops the gradient where it is looked up.
    """
    batch_size, length = tokens_BT.shape
    later = (random_tokens(vocab_size, batch_size, length, seed) for seed in range(1, steps))
    batches = [tokens_BT, *later]
    if unused is None:
        return batches
    return [np.where(batch == unused, (unused + 1) % vocab_size, batch) for batch in batches]


def judge_gradients(runs: Runs) -> list[TensorResult]:
    """Every parameter's gradient."""
    return list(_judge("gradient", runs, 0))


def judge_step(runs: Runs) -> list[TensorResult]:
    """The norm that clips, and of every parameter both moments and the update."""
    ours, theirs, others = runs
    floor = max(abs(other.norm - theirs.norm) / theirs.norm for other in others)
    norm = TensorResult(
        path="gradient",
        parameter="",
        what="norm",
        relative_l2=abs(ours.norm - theirs.norm) / theirs.norm,
        floor=floor,
        threshold=tolerance.threshold(floor, tolerance.MOST_IN_TRAINING),
    )
    return [norm, *_judge("m", runs, 1), *_judge("v", runs, 2), *_updates(runs)]


def _judge(what: str, runs: Runs, power: int) -> Iterator[TensorResult]:
    """What is this power of the clipped gradient, and so as many times as far off; 0: itself."""
    gradient, clip = runs[1].first["gradient"], CLIP_EPS / runs[1].norm
    ours, theirs = runs[0].first[what], runs[1].first[what]
    others = [run.first[what] for run in runs[2]]
    whole = _norm(np.array([_norm(array) for array in theirs.values()]))
    for name in ours:
        if name not in theirs:
            yield _missing(name, what)
            continue
        array = theirs[name]
        error = metrics.relative_l2(ours[name], array)
        floor = max(metrics.relative_l2(other[name], array) for other in others)
        relative_to = "own"
        if floor > NOTHING_BUT_NOISE and whole > 0:
            error = _norm(ours[name] - array) / whole
            floor = max(_norm(other[name] - array) for other in others) / whole
            relative_to = "all"
        if power and relative_to == "own":
            noise = (
                metrics.relative_l2(r.first["gradient"][name], gradient[name]) for r in runs[2]
            )
            floor = max(floor, power * (max(noise) + clip))
        path, _, parameter = name.rpartition(".")
        yield TensorResult(
            path=path,
            parameter=parameter,
            what=what,
            relative_l2=error,
            floor=floor,
            threshold=tolerance.threshold(floor, tolerance.MOST_IN_TRAINING),
            relative_to=relative_to,
        )


def _updates(runs: Runs) -> Iterator[TensorResult]:
    """Of every parameter, the update of those elements whose gradient is more than noise."""
    ours, theirs, others = runs
    for name in ours.first["update"]:
        if name not in theirs.first["update"]:
            yield _missing(name, "update")
            continue
        update = theirs.first["update"][name]
        gradient = theirs.first["gradient"][name]
        noise = max(metrics.max_abs(r.first["gradient"][name], gradient) for r in others)
        counts = np.abs(gradient) > ABOVE_NOISE * noise
        error = metrics.relative_l2(ours.first["update"][name][counts], update[counts])
        floor = max(
            metrics.relative_l2(other.first["update"][name][counts], update[counts])
            for other in others
        )
        # The update is the difference of two parameters, each of which was rounded.
        halves = 0.5 * np.spacing(np.abs(theirs.first["parameter"][name]))
        size = _norm(update[counts])
        floor = max(floor, _norm(halves[counts]) / size if size else 0.0)
        path, _, parameter = name.rpartition(".")
        yield TensorResult(
            path=path,
            parameter=parameter,
            what="update",
            relative_l2=error,
            floor=floor,
            threshold=tolerance.threshold(floor, tolerance.MOST_IN_TRAINING),
            compared=float(counts.mean()),
        )


def _missing(name: str, what: str) -> TensorResult:
    """Of a parameter that the reference does not have, or has in another shape."""
    path, _, parameter = name.rpartition(".")
    return TensorResult(path, parameter, what, math.inf, 0.0, tolerance.threshold(0.0))


def judge_curve(runs: Runs) -> list[LossResult]:
    """The loss of every step. What noise did to an earlier step, it may do to a later one."""
    ours, theirs, others = runs
    rows, floor = [], 0.0
    for step, (mine, loss) in enumerate(zip(ours.losses, theirs.losses, strict=True)):
        apart = (abs(other.losses[step] - loss) / abs(loss) for other in others)
        floor = max(floor, *apart)
        threshold = tolerance.threshold(floor, tolerance.MOST_IN_TRAINING)
        rows.append(LossResult(f"step {step}", mine, loss, floor, threshold))
    return rows


def _norm(array: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(array, np.float64).ravel()))
