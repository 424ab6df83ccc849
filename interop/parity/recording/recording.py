"""Recordings: the reference's activations and noise floors, enough to judge a model by."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from typing import Any, Self

import numpy as np

from jaxllm.errors import UserError
from jaxllm.interop.parity.alignment.activations import Alignment
from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.alignment.router_flips import ROUTER
from jaxllm.interop.parity.execution.noise_floor import EQUIVALENT_EVALUATIONS
from jaxllm.interop.parity.execution.torch_trace import Outputs, trace_reference
from jaxllm.interop.parity.numerics import metrics
from jaxllm.interop.parity.numerics.array_store import ArrayStore, in_memory
from jaxllm.interop.parity.report.rows import LOGITS

from .sample import Sample


@dataclasses.dataclass(frozen=True)
class Recording:
    """The reference's activations, by JAX paths, and its rounding noise."""

    inputs: Inputs
    arrays: dict[str, np.ndarray]  # every tap in execution order, the logits last
    # Noise floors: relative L2 error between equivalent evaluations of the reference.
    floors: dict[str, float]
    versions: dict[str, str]  # of the packages that computed the reference
    logits_noise: float  # largest difference of logits between equivalent evaluations
    # Router logits of each equivalent evaluation, by JAX path, without padding.
    routers: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)
    # Noise floor of each activation on its own, computed from the recorded ones before it.
    forced_floors: dict[str, float] = dataclasses.field(default_factory=dict)
    of_source: frozenset[str] = frozenset()  # taps whose positions are those of the source
    sample: Sample | None = None  # which elements of each array are kept; None: all

    @classmethod
    def from_pack(cls, kept: Mapping[str, Any]) -> Self:
        """Restores a recording from the data that `plain` returned for it."""
        sample = kept["sample"]
        given = {
            **kept,
            "inputs": Inputs.from_arrays(kept["inputs"]),
            "of_source": frozenset(kept["of_source"]),
            "sample": sample and Sample(tuple(sample["positions"]), sample["features"]),
        }
        return cls(**given)

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
        mask = self.inputs.source_mask if path in self.of_source else self.inputs.target_mask
        if self.sample is not None:
            name = "source" if path in self.of_source else "target"
            shape_BT = self.inputs.arrays[name].shape[:2]
            is_compared_whole = path == LOGITS or path.endswith(ROUTER)
            return self.sample.of(array, shape_BT, mask, whole=is_compared_whole)
        return array if mask is None else array[mask != 0]


def record(
    reference: Any,
    inputs: Inputs,
    alignment: Alignment,
    sample: Sample | None = None,
    store: ArrayStore = in_memory,
) -> Recording:
    """Runs the reference with plain attention, and in equivalent ways to measure its noise.

    Args:
        reference: the PyTorch module.
        inputs: its inputs.
        alignment: the activations to record.
        sample: which elements to keep; by default all.
        store: the store for the activations.

    Raises:
        UserError: the reference lacks a module of the alignment, or has another shape there.
    """
    known = {name for name, _ in reference.named_modules()}
    if missing := [name for name in alignment.modules if name not in known]:
        raise UserError(f"the reference has no {', '.join(missing)}")
    trace = partial(trace_reference, reference, inputs, alignment.names, store=store)
    aligned = partial(_aligned, alignment=alignment, store=store)
    outputs = trace()
    arrays = aligned(outputs)
    versions = {package: version(package) for package in ("torch", "transformers")}
    of_source = frozenset(path for tap in alignment.taps if tap.of_source for path in tap.paths)
    plain = Recording(inputs, arrays, {}, versions, 0.0, of_source=of_source, sample=sample)
    if sample is not None:
        kept = {path: plain.unpadded(path, array) for path, array in arrays.items()}
        plain = dataclasses.replace(plain, arrays=kept)
    # A sampled recording cannot be fed forward.
    forced_arrays = arrays if alignment.taps and sample is None else ()
    floors, forced_floors = dict.fromkeys(arrays, 0.0), dict.fromkeys(forced_arrays, 0.0)
    logits_noise = 0.0
    routers: dict[str, list[np.ndarray]] = {path: [] for path in arrays if path.endswith(ROUTER)}
    for equivalent in EQUIVALENT_EVALUATIONS:
        with equivalent(reference):
            other = aligned(trace())
        _raise(floors, plain, other)
        if forced_floors:
            with equivalent(reference):
                forced = aligned(trace(given=outputs))
            _raise(forced_floors, plain, forced)
        for path, others in routers.items():
            others.append(plain.unpadded(path, other[path]))
        apart = metrics.masked_max_abs(
            plain.unpadded(LOGITS, other[LOGITS]), plain.unpadded(LOGITS)
        )
        logits_noise = max(logits_noise, apart)
    return dataclasses.replace(
        plain,
        floors=floors,
        forced_floors=forced_floors,
        logits_noise=logits_noise,
        routers=routers,
    )


def _raise(floors: dict[str, float], plain: Recording, other: Mapping[str, np.ndarray]) -> None:
    """Raises each noise floor to the error between two evaluations of the reference, in place."""
    for path, floor in floors.items():
        noise = metrics.masked_relative_l2(plain.unpadded(path, other[path]), plain.unpadded(path))
        floors[path] = max(floor, noise)


def _aligned(outputs: Outputs, alignment: Alignment, store: ArrayStore) -> dict[str, np.ndarray]:
    """Returns the last value of each activation by JAX path, the logits last."""
    lasts = {name: calls[-1] for name, calls in outputs.items()}
    return {**alignment.align(lasts, store), LOGITS: lasts[LOGITS]}
