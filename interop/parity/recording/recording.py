"""The reference's side of a comparison: all that judging a model needs, and no PyTorch."""

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
from jaxllm.interop.parity.execution.noise_floor import WAYS
from jaxllm.interop.parity.execution.torch_trace import Outputs, trace_reference
from jaxllm.interop.parity.numerics import metrics
from jaxllm.interop.parity.numerics.array_store import Shelf, in_memory
from jaxllm.interop.parity.report.rows import LOGITS

from .sample import Sample


@dataclasses.dataclass(frozen=True)
class Recording:
    """What the reference computed, under our names, and its own rounding noise."""

    inputs: Inputs
    arrays: dict[str, np.ndarray]  # every tap in execution order, the logits last
    floors: dict[str, float]  # relative L2 between the reference and itself computed otherwise
    versions: dict[str, str]  # of what computed it
    logits_noise: float  # the largest difference between its logits and those computed otherwise
    # What its routers computed otherwise, once for each way, by our names, without padding.
    routers: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)
    # As `floors`, of each step alone: those before it returned what they do in `arrays`.
    forced_floors: dict[str, float] = dataclasses.field(default_factory=dict)
    of_source: frozenset[str] = frozenset()  # the taps with a number for each token of the source
    sample: Sample | None = None  # what is kept of each array, if not all

    @classmethod
    def of_plain(cls, kept: Mapping[str, Any]) -> Self:
        """The recording that `plain` made plain data of."""
        sample = kept["sample"]
        given = {
            **kept,
            "inputs": Inputs(**kept["inputs"]),
            "of_source": frozenset(kept["of_source"]),
            "sample": sample and Sample(tuple(sample["positions"]), sample["features"]),
        }
        return cls(**given)

    def real(self, path: str, array: np.ndarray | None = None) -> np.ndarray:
        """A tap, or another array like it, without its padding, if there is any: the rest is flat.

        By default what the reference computed. Of a sample, only what it keeps.
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
    shelf: Shelf = in_memory,
) -> Recording:
    """Runs the reference with plain attention, and in other ways to measure its noise.

    Of what it computes a `sample` is kept on the shelf, or all.

    Raises:
        UserError: the reference has other modules or sizes than the alignment says.
    """
    known = {name for name, _ in reference.named_modules()}
    if missing := [name for name in alignment.modules if name not in known]:
        raise UserError(f"the reference has no {', '.join(missing)}")
    trace = partial(trace_reference, reference, inputs, alignment.names, shelf=shelf)
    aligned = partial(_aligned, alignment=alignment, shelf=shelf)
    outputs = trace()
    arrays = aligned(outputs)
    versions = {package: version(package) for package in ("torch", "transformers")}
    of_source = frozenset(path for tap in alignment.taps if tap.of_source for path in tap.paths)
    plain = Recording(inputs, arrays, {}, versions, 0.0, of_source=of_source, sample=sample)
    if sample is not None:
        kept = {path: plain.real(path, array) for path, array in arrays.items()}
        plain = dataclasses.replace(plain, arrays=kept)
    # Of a sample there is nothing to go on with.
    forced_arrays = arrays if alignment.taps and sample is None else ()
    floors, forced_floors = dict.fromkeys(arrays, 0.0), dict.fromkeys(forced_arrays, 0.0)
    logits_noise = 0.0
    routers: dict[str, list[np.ndarray]] = {path: [] for path in arrays if path.endswith(ROUTER)}
    for otherwise in WAYS:
        with otherwise(reference):
            other = aligned(trace())
        _raise(floors, plain, other)
        if forced_floors:
            with otherwise(reference):
                forced = aligned(trace(given=outputs))
            _raise(forced_floors, plain, forced)
        for path, others in routers.items():
            others.append(plain.real(path, other[path]))
        apart = metrics.max_abs(plain.real(LOGITS, other[LOGITS]), plain.real(LOGITS))
        logits_noise = max(logits_noise, apart)
    return dataclasses.replace(
        plain,
        floors=floors,
        forced_floors=forced_floors,
        logits_noise=logits_noise,
        routers=routers,
    )


def _raise(floors: dict[str, float], plain: Recording, other: Mapping[str, np.ndarray]) -> None:
    """Raises noise to what it is between two runs of the reference."""
    for path, floor in floors.items():
        noise = metrics.relative_l2(plain.real(path, other[path]), plain.real(path))
        floors[path] = max(floor, noise)


def _aligned(outputs: Outputs, alignment: Alignment, shelf: Shelf) -> dict[str, np.ndarray]:
    """The last of what each step computed, under our names, the logits last."""
    lasts = {name: calls[-1] for name, calls in outputs.items()}
    return {**alignment.align(lasts, shelf), LOGITS: lasts[LOGITS]}
