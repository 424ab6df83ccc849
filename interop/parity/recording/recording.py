"""Recordings: the reference's activations and noise floors, enough to judge a model by."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.metadata import version
from typing import Any, Self

import numpy as np

from jaxllm.errors import UserError
from jaxllm.interop.parity.alignment.calls import without_call
from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.alignment.layouts import Alignment
from jaxllm.interop.parity.alignment.router_flips import ROUTER
from jaxllm.interop.parity.execution.distances import Arrays, Distances, measure
from jaxllm.interop.parity.execution.simulated_rounding import DRAWS
from jaxllm.interop.parity.execution.torch_trace import (
    Outputs,
    float32_difference,
    trace_reference,
)
from jaxllm.interop.parity.memory.array_store import ArrayStore, in_memory
from jaxllm.interop.parity.numerics.attention_scores import SCORES
from jaxllm.interop.parity.numerics.precision import FLOAT32, Precision, computed_in, dtype_name
from jaxllm.interop.parity.progress import announce
from jaxllm.interop.parity.report.activation_rows import LOGITS
from jaxllm.numerics.distance import max_abs
from jaxllm.numerics.error_vector import error_of

from .plain import plain
from .sample import Sample


@dataclasses.dataclass(frozen=True)
class Recording:
    """The reference's activations, by JAX paths, and their distances from float64."""

    inputs: Inputs
    arrays: dict[str, np.ndarray]  # every tap in execution order, the logits last
    versions: dict[str, str]  # of the packages that computed the reference
    free: Distances = Distances({}, {})  # of a run on its own
    forced: Distances | None = None  # of each activation computed from the recorded ones before it
    # Largest error of an element with simulated rounding, of the logits and of router logits.
    largest: dict[str, float] = dataclasses.field(default_factory=dict)
    # Router logits with simulated rounding, by JAX path; those of the reference at padding.
    routers: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)
    of_source: frozenset[str] = frozenset()  # taps whose positions are those of the source
    left_out: tuple[str, ...] = ()  # taps that the reference did not record, or not in every call
    sample: Sample | None = None  # which elements of each array are kept; None: all
    precision: Precision = FLOAT32  # of the reference

    @classmethod
    def from_pack(cls, kept: Mapping[str, Any]) -> Self:
        """Restores a recording from the data that `to_pack` returned."""
        sample, forced = kept["sample"], kept["forced"]
        given = {
            **kept,
            "inputs": Inputs.from_arrays(kept["inputs"]),
            "free": Distances.from_pack(kept["free"]),
            "forced": forced and Distances.from_pack(forced),
            "of_source": frozenset(kept["of_source"]),
            "left_out": tuple(kept["left_out"]),
            "sample": sample and Sample(tuple(sample["positions"]), sample["features"]),
        }
        return cls(**given)

    def to_pack(self) -> dict[str, Any]:
        """Returns the recording as plain data and arrays."""
        forced = None if self.forced is None else self.forced.to_pack()
        kept = {n: x for n, x in plain(self).items() if n != "precision"}  # float32 in every pack
        return {**kept, "free": self.free.to_pack(), "forced": forced}

    @property
    def whole_rows(self) -> list[int] | None:
        """The rows without padding; None if all are, or if none is."""
        masks = [self.inputs.source_mask, self.inputs.target_mask]
        padded = [(mask == 0).any(1) for mask in masks if mask is not None]
        whole = np.flatnonzero(~np.any(padded, axis=0)) if padded else ()
        return [int(row) for row in whole] if 0 < len(whole) < len(self.inputs.target) else None

    def unpadded(self, path: str, array: np.ndarray | None = None) -> np.ndarray:
        """Returns an activation without padding and, for a sampled recording, only the sample.

        Args:
            path: the tap.
            array: another array of the tap's shape, BT...; by default the reference's.

        Returns:
            The array as it is if there is neither padding nor a sample, else with rows and
            positions flattened into one dimension.
        """
        if array is None and self.sample is not None:
            return self.arrays[path]
        array = self.arrays[path] if array is None else array
        mask = self.mask_of(path)
        if self.sample is not None:
            name = "source" if self.is_of_source(path) else "target"
            shape_BT = self.inputs.arrays[name].shape[:2]
            is_compared_whole = path == LOGITS or path.endswith(ROUTER)
            return self.sample.of(array, shape_BT, mask, whole=is_compared_whole)
        return array if mask is None else array[mask != 0]

    def departure(self, path: str, array: np.ndarray) -> np.ndarray:
        """Returns an activation minus the reference's, in float32.

        Padding is zero or, in a sampled recording, left out.
        """
        theirs = self.arrays[path]
        if self.sample is not None:
            array = self.unpadded(path, array)
        apart = float32_difference(array, theirs)
        return apart if self.sample is not None else self.without_padding(path, apart)

    def without_padding(self, path: str, departure: np.ndarray) -> np.ndarray:
        """Sets a departure to zero at padding, in place."""
        mask = self.mask_of(path)
        if mask is not None:
            departure[mask == 0] = 0.0
        return departure

    def mask_of(self, path: str) -> np.ndarray | None:
        """Returns the mask of the positions of an activation: 0 at padding."""
        return self.inputs.source_mask if self.is_of_source(path) else self.inputs.target_mask

    def is_of_source(self, path: str) -> bool:
        """Whether the positions of an activation are those of the source."""
        return without_call(path) in self.of_source

    def size(self, path: str) -> float:
        """Returns the norm of the reference's activation without padding and masked keys."""
        theirs = self.arrays[path]
        if path.endswith(SCORES):
            theirs = np.where(np.isneginf(theirs), 0, theirs)
        mask = None if self.sample is not None else self.mask_of(path)
        if mask is None:
            return error_of(theirs).length
        rows = zip(theirs, mask != 0, strict=True)
        return math.hypot(*(error_of(x if keeps.all() else x[keeps]).length for x, keeps in rows))


def record(
    reference: Any,
    inputs: Inputs,
    alignment: Alignment,
    draws: int = DRAWS,
    sample: Sample | None = None,
    store: ArrayStore = in_memory,
    *,
    is_fed: bool = True,
) -> Recording:
    """Runs the reference with plain attention, in float64, and with simulated rounding.

    Args:
        reference: the PyTorch module.
        inputs: its inputs.
        alignment: the activations to record.
        draws: the number of runs with simulated rounding.
        sample: which elements to keep; by default all.
        store: the store for the activations.
        is_fed: whether to run the reference also with the recorded activations as inputs of the
            next ones. Impossible for a sample.

    Raises:
        UserError: the reference lacks a module of the alignment, or has another shape there.
    """
    known = {name for name, _ in reference.named_modules()}
    if missing := [name for name in alignment.modules if name not in known]:
        raise UserError(f"the reference has no {', '.join(missing)}")
    trace = partial(trace_reference, reference, inputs, alignment.names, store=store)
    announce("activations: reference")
    outputs = trace()
    precision = computed_in(map(dtype_name, reference.parameters())) or FLOAT32
    arrays = _aligned(outputs, alignment, store)
    whole = Recording(
        inputs=inputs,
        arrays=arrays,
        versions={package: version(package) for package in ("torch", "transformers")},
        left_out=tuple(alignment.left_out(outputs)),
        of_source=frozenset(path for tap in alignment.taps if tap.of_source for path in tap.paths),
        routers={path: [] for path in arrays if path.endswith(ROUTER)},
        largest={path: 0.0 for path in arrays if path == LOGITS or path.endswith(ROUTER)},
        sample=sample,
        precision=precision,
    )
    kept = whole
    if sample is not None:
        sampled = {path: whole.unpadded(path, array) for path, array in arrays.items()}
        kept = dataclasses.replace(whole, arrays=sampled)

    def depart(given: Outputs | None = None) -> dict[str, np.ndarray]:
        """Runs the reference again; returns the differences from the first run."""
        found = _aligned(trace(given=given, minus=outputs), alignment, store, are_differences=True)
        return dict(_comparable(found, whole))

    free = measure("activations", depart, partial(_watch, kept), draws=draws)
    forced = None
    if is_fed and alignment.taps and sample is None:
        forced = measure("each activation alone", partial(depart, outputs), draws=draws)
    return dataclasses.replace(kept, free=free, forced=forced)


def _comparable(
    departures: dict[str, np.ndarray], whole: Recording
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields departures without masked keys and padding, or a sample of them."""
    for path, array in departures.items():
        if path.endswith(SCORES):
            array[np.isneginf(whole.arrays[path])] = 0.0
        keep = whole.without_padding if whole.sample is None else whole.unpadded
        yield path, keep(path, array)


def _watch(recording: Recording, departures: Arrays, corrections: Arrays) -> None:
    """Keeps router logits and the largest errors of a run with simulated rounding, in place."""
    for path, others in recording.routers.items():
        others.append(recording.arrays[path] + departures[path])
    for path, most in recording.largest.items():
        recording.largest[path] = max(most, max_abs(departures[path], corrections[path]))


def _aligned(
    outputs: Outputs, alignment: Alignment, store: ArrayStore, *, are_differences: bool = False
) -> dict[str, np.ndarray]:
    """Returns the value of each activation by JAX path, the logits last."""
    aligned = alignment.align(outputs, store, are_differences=are_differences)
    return {**aligned, LOGITS: outputs[LOGITS]}
