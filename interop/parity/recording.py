"""The reference's side of a comparison: all that judging a model needs, and no PyTorch."""

import dataclasses
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from . import metrics
from .noise import WAYS
from .routing import ROUTER
from .rows import LOGITS
from .taps import Alignment
from .trace_torch import trace_reference

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclasses.dataclass(frozen=True)
class Recording:
    """What the reference computed, under our names, and its own rounding noise."""

    tokens_BT: np.ndarray
    arrays: dict[str, np.ndarray]  # every tap in execution order, the logits last
    floors: dict[str, float]  # relative L2 between the reference and itself computed otherwise
    versions: dict[str, str]  # of what computed it
    logits_noise: float  # the largest difference between its logits and those computed otherwise
    # What its routers computed otherwise, once for each way, by our names.
    routers: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)


def record(reference: "PreTrainedModel", tokens_BT: np.ndarray, alignment: Alignment) -> Recording:
    """Runs the reference with plain attention, and in other ways to measure its noise.

    Raises:
        ValueError: the reference has other modules or sizes than the alignment says.
    """
    known = {name for name, _ in reference.named_modules()}
    if missing := [name for name in alignment.modules if name not in known]:
        raise ValueError(f"the reference has no {', '.join(missing)}")
    arrays = _trace(reference, tokens_BT, alignment, "eager")
    floors = dict.fromkeys(arrays, 0.0)
    logits_noise = 0.0
    routers: dict[str, list[np.ndarray]] = {path: [] for path in arrays if path.endswith(ROUTER)}
    for attention, otherwise in WAYS:
        with otherwise(reference):
            other = _trace(reference, tokens_BT, alignment, attention)
        for path, array in arrays.items():
            floors[path] = max(floors[path], metrics.relative_l2(other[path], array))
            if path in routers:
                routers[path].append(other[path])
        logits_noise = max(logits_noise, metrics.max_abs(other[LOGITS], arrays[LOGITS]))
    versions = {package: version(package) for package in ("torch", "transformers")}
    return Recording(tokens_BT, arrays, floors, versions, logits_noise, routers)


def _trace(
    reference: "PreTrainedModel", tokens_BT: np.ndarray, alignment: Alignment, attention: str
) -> dict[str, np.ndarray]:
    outputs = trace_reference(reference, tokens_BT, alignment.modules, attention)
    return {**alignment.align(outputs), LOGITS: outputs[LOGITS]}
