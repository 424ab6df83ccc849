"""Training errors: how far the arrays of a first training step are from those in float64."""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxllm.interop.parity.execution.recipe import Recipe, TrainingRecord
from jaxllm.numerics.distance import max_abs, norm
from jaxllm.numerics.error_vector import ErrorVector, error_of

# When clipping, PyTorch divides by the norm plus this; optax does not.
CLIP_EPS = 1e-6

# Updates are compared only where the gradient is this many times its noise; elsewhere the update
# is noise too.
ABOVE_NOISE = 1e3

# Of any parameter, so many elements may be rounded to a neighbouring number. In a hundred elements
# that are rounded, about one is.
ALWAYS_ALLOWED = 4

INFINITE = ErrorVector(math.inf, np.full(1, np.inf, np.float32))  # of what one side lacks

MOMENTS = ("gradient", "m", "v")  # kinds of arrays that are compared whole


@dataclasses.dataclass(frozen=True)
class Truth:
    """The first step of the reference in float64, and the losses of all steps.

    In a first step AdamW's moments are functions of the gradient, so they are not stored.

    Attributes:
        recipe: the training recipe.
        losses: the loss of every step.
        norm: global norm of the gradients.
        gradient: of every parameter, before clipping.
        update: of every parameter.
        noise: by parameter, the largest error of an element of the reference's gradient in float32.
        rounding: by parameter, what the rounding of the parameter itself may add to its update.
    """

    recipe: Recipe
    losses: tuple[float, ...]
    norm: float
    gradient: Mapping[str, np.ndarray]
    update: Mapping[str, np.ndarray]
    noise: Mapping[str, float]
    rounding: Mapping[str, float]

    def moment(self, what: str, name: str) -> np.ndarray:
        """Returns the gradient or a moment of a parameter, as it is without clipping."""
        gradient = self.gradient[name]
        if what == "gradient":
            return gradient
        if what == "m":
            return (1 - self.recipe.b1) * gradient
        return (1 - self.recipe.b2) * np.square(gradient)

    def compared(self, name: str) -> np.ndarray:
        """Returns a mask of the elements of a parameter whose gradient is far above its noise.

        The update of any other element is noise: Adam divides each gradient by its size.
        """
        return np.abs(self.gradient[name]) > ABOVE_NOISE * self.noise[name]


class RunErrors(NamedTuple):
    """The errors of a training run, whose arrays, as large as the model, are not kept."""

    losses: tuple[float, ...]  # of all steps
    norm: float  # global norm of the first step's gradients
    errors: dict[str, dict[str, ErrorVector]]  # of the first step's arrays, by kind and parameter


def truth_of(wide: TrainingRecord, theirs: TrainingRecord, recipe: Recipe) -> Truth:
    """Returns what runs are compared with.

    Args:
        wide: the run of the reference in float64.
        theirs: its run in float32.
        recipe: the training recipe.
    """
    gradient, update = dict(wide.first["gradient"]), dict(wide.first["update"])
    noise = {name: max_abs(theirs.first["gradient"][name], x) for name, x in gradient.items()}
    truth = Truth(recipe, wide.losses, wide.norm, gradient, update, noise, rounding={})
    before = theirs.first["parameter"]
    rounding = {
        name: _rounding(before[name][counts], change[counts])
        for name, change in update.items()
        for counts in [truth.compared(name)]
    }
    return dataclasses.replace(truth, rounding=rounding)


def _rounding(before: np.ndarray, change: np.ndarray) -> float:
    """Returns the L2 norm of what rounding to float32 after an update may add to the update.

    Two correct runs round nearly all elements alike, and a few to neighbouring numbers.
    """
    if not before.size:
        return 0.0
    after = (before + change).astype(np.float32)  # updates in float64 have its dtype
    spacing = np.spacing(np.maximum(np.abs(before), np.abs(after)))
    return max(norm(0.5 * spacing), math.sqrt(ALWAYS_ALLOWED) * float(spacing.max()))


def errors_of(run: TrainingRecord, truth: Truth, clip_eps: float = CLIP_EPS) -> RunErrors:
    """Returns the errors of a run.

    A parameter that the truth lacks, and an update that is not finite, has an infinite error.

    Args:
        run: the run.
        truth: the run of the reference in float64.
        clip_eps: what clipping adds to the global norm: nothing in optax.
    """
    errors: dict[str, dict[str, ErrorVector]] = {}
    for what in MOMENTS:
        scale = unclipped(run.norm + clip_eps, what, truth.recipe.clip_norm)
        errors[what] = {
            name: error_of(scale * array, truth.moment(what, name))
            if name in truth.gradient
            else INFINITE
            for name, array in run.first[what].items()
        }
    errors["update"] = {}
    for name, update in run.first["update"].items():
        if name not in truth.update or not np.isfinite(update).all():
            errors["update"][name] = INFINITE
            continue
        counts = truth.compared(name)
        errors["update"][name] = error_of(update[counts], truth.update[name][counts])
    return RunErrors(run.losses, run.norm, errors)


def unclipped(norm: float, what: str, clip_norm: float) -> float:
    """Returns the factor that undoes clipping in a moment.

    The norm has its own row. In float32 it is inexact for large models, and would move all moments
    together.

    Args:
        norm: the global norm, with what clipping adds to it.
        what: `gradient`, which is not clipped yet, or the moment `m` or `v`.
        clip_norm: the global norm that gradients are clipped to.
    """
    power = MOMENTS.index(what)
    return max(1.0, norm / clip_norm) ** power
