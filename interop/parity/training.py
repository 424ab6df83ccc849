"""The levels of training: gradients, one step of the optimizer, and a curve of many."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optax

from jaxllm.interop.rules import BoundRule
from jaxllm.models import Model

from . import metrics, tolerance
from .calling import calling_of
from .inputs import Inputs
from .noise import WAYS
from .recipe import Recipe, Training
from .rows import LossResult, TensorResult
from .spelling import decayed, imported, our_names
from .train_jax import train_model
from .train_torch import train_reference

Arrays = Mapping[str, np.ndarray]

# A gradient that differs by a tenth when the reference computes it in another way is what is left
# of sums that cancel, such as that of a key's bias without RoPE. It counts as a part of all.
NOTHING_BUT_NOISE = 0.1

# PyTorch divides by the norm plus this when it clips; optax does not.
CLIP_EPS = 1e-6

# Elements of a gradient that are so many times its noise have an update that is not noise: Adam
# divides by their size, so that of an element which is noise is too.
ABOVE_NOISE = 1e3

TRAINING = ("gradients", "step", "curve")
Runs = tuple[Training, Training, Sequence[Training]]  # ours, the reference's, and in other ways


def train_both(
    reference: Any,
    model: Model,
    rules: Sequence[BoundRule],
    inputs: Inputs,
    steps: int,
    recipe: Recipe,
    optimizer: optax.GradientTransformation | None,
) -> Runs:
    """Both sides trained from the same weights on the same batches, everything by our names.

    `rules` are those of a model whose layers are one by one; `model` may have them stacked.
    """
    course = course_of(reference, model, rules, inputs, steps)
    ours = train_model(model, course.batches, optimizer or recipe.optimizer(model), course.constant)
    plain, *others = train_references(reference, rules, course, recipe)
    return ours, plain, others


class Course(NamedTuple):
    """What both sides are trained on."""

    batches: list[Inputs]
    constant: set[str]  # our names of what is a buffer in PyTorch, and is not trained there


def course_of(
    reference: Any, model: Model, rules: Sequence[BoundRule], inputs: Inputs, steps: int
) -> Course:
    """Batches like the inputs, which are the first of them."""
    # PyTorch drops the gradient of a token for padding where it is looked up.
    unused = calling_of(reference).padding(reference)
    later = (inputs.redrawn(model, seed) for seed in range(1, steps))
    batches = [batch.without(unused, model) for batch in (inputs, *later)]
    names = our_names(rules)
    constant = {ours for name, _ in reference.named_buffers() for ours in names.get(name, ())}
    return Course(batches, constant)


def train_references(
    reference: Any, rules: Sequence[BoundRule], course: Course, recipe: Recipe
) -> list[Training]:
    """The reference's training, and then the same computed in other ways."""
    decays = decayed(rules)

    def theirs() -> Training:
        run = train_reference(reference, course.batches, recipe, decays)
        first = {what: imported(rules, arrays) for what, arrays in run.first.items()}
        return dataclasses.replace(run, first=first)

    runs = [theirs()]
    for otherwise in WAYS:
        with otherwise(reference):
            runs.append(theirs())
    return runs


def judge_training(runs: Runs, levels: Sequence[str]) -> dict[str, Sequence[Any]]:
    """The rows of those levels that are of training."""
    judges: dict[str, Any] = {
        "gradients": judge_gradients,
        "step": judge_step,
        "curve": judge_curve,
    }
    return {level: judged(runs) for level, judged in judges.items() if level in levels}


def judge_gradients(runs: Runs) -> list[TensorResult]:
    """The loss of the first batch, and every parameter's gradient of it."""
    ours, theirs, others = runs
    losses = [run.losses[0] for run in (ours, theirs, *others)]
    return [_judge_number("batch", "loss", losses), *_judge("gradient", runs, 0)]


def judge_step(runs: Runs) -> list[TensorResult]:
    """The norm that clips, and of every parameter both moments and the update."""
    ours, theirs, others = runs
    norm = _judge_number("gradient", "norm", [run.norm for run in (ours, theirs, *others)])
    return [norm, *_judge("m", runs, 1), *_judge("v", runs, 2), *_updates(runs)]


def _judge_number(path: str, what: str, found: Sequence[float]) -> TensorResult:
    """One number: ours, the reference's, and the reference's computed otherwise."""
    ours, theirs, *others = found
    floor = max(abs(other - theirs) / abs(theirs) for other in others)
    return TensorResult(
        path=path,
        parameter="",
        what=what,
        relative_l2=abs(ours - theirs) / abs(theirs),
        floor=floor,
        threshold=tolerance.threshold(floor, tolerance.MOST_IN_TRAINING),
    )


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
