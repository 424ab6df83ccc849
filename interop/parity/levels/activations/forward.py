"""Forward levels: compares every activation and the logits of a forward pass with a recording."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from jaxllm.errors import UserError
from jaxllm.interop.parity.alignment.activations import derive_taps, output_path
from jaxllm.interop.parity.alignment.calls import without_call
from jaxllm.interop.parity.alignment.layouts import Alignment
from jaxllm.interop.parity.diagnosis.evidence import Evidence, Rows
from jaxllm.interop.parity.diagnosis.hints import hint_of, hint_of_sample
from jaxllm.interop.parity.execution.distances import ELEMENT_FACTOR, Arrays
from jaxllm.interop.parity.execution.jax_parameters import LazyWeights
from jaxllm.interop.parity.execution.jax_trace import trace_free_and_forced, trace_model
from jaxllm.interop.parity.levels.sides import Comparison
from jaxllm.interop.parity.memory.array_store import ArrayStore, in_memory
from jaxllm.interop.parity.numerics import metrics
from jaxllm.interop.parity.numerics.precision import FLOAT32
from jaxllm.interop.parity.progress import announce
from jaxllm.interop.parity.recording.recording import Recording, record
from jaxllm.interop.parity.recording.sampled_rows import ModelRows, ReferenceRows
from jaxllm.interop.parity.report.activation_rows import (
    LOGITS,
    Error,
    RouterFlips,
    TapResult,
    first_wrong,
)
from jaxllm.interop.parity.report.judged import settled
from jaxllm.interop.parity.report.report import Bucket, LogitsResult
from jaxllm.models import Model
from jaxllm.numerics.distance import relative

from .routers import router_flips, router_paths, router_taps


@dataclasses.dataclass(frozen=True)
class Forward:
    """The result of comparing one forward pass with the reference's."""

    taps: tuple[TapResult, ...]  # in execution order, the logits last
    details: dict[str, Any]  # other fields of the report

    @property
    def activations(self) -> tuple[TapResult, ...]:
        """The rows of intermediate activations."""
        return tuple(tap for tap in self.taps if not tap.is_output)

    @property
    def outputs(self) -> tuple[TapResult, ...]:
        """The rows of the model's output."""
        return tuple(tap for tap in self.taps if tap.is_output)


def record_forward(comparison: Comparison) -> Recording:
    """Runs the reference, or takes its recording on the same inputs from an earlier comparison."""
    inputs, sample = comparison.inputs, comparison.sample
    is_fed = "layers" in comparison.levels
    if is_fed:
        taps = derive_taps(comparison.table, comparison.unstacked, inputs)
    else:  # routers are needed all the same, since rounding may decide what they choose
        taps = router_taps(comparison, inputs)
    alignment = Alignment(taps)
    reference, store = comparison.reference, comparison.store
    run = partial(
        record, reference, inputs, alignment, comparison.draws, sample, store, is_fed=is_fed
    )
    return comparison.of_reference(
        run, "activations", inputs.digest, alignment.digest, sample, is_fed
    )


def judge(
    recording: Recording, model: Model, levels: Sequence[str], store: ArrayStore = in_memory
) -> Forward:
    """Runs the JAX model and compares its activations with those of a recording.

    Args:
        recording: the recording of the reference.
        model: the JAX model, its layers not stacked.
        levels: the levels to judge; without `layers`, only the logits are compared.
        store: the store for the activations.

    Raises:
        UserError: the logits have another shape than the reference's, or the model lacks an
            activation.
    """
    inputs, theirs = recording.inputs, recording.arrays
    forced: Arrays | None = None
    announce("activations: model")
    if "layers" in levels and recording.sample is None:
        ours, forced = trace_free_and_forced(model, inputs, theirs, store)
    else:
        paths = list(dict.fromkeys(without_call(path) for path in theirs if path != LOGITS))
        if "layers" not in levels:
            paths = router_paths(recording)
        ours = trace_model(model, inputs, paths)
    found, wanted = (
        x.shape for x in (recording.unpadded(LOGITS, ours[LOGITS]), recording.unpadded(LOGITS))
    )
    if found != wanted:
        raise UserError(f"the logits have shape {wanted} in the reference, {found} in the model")
    taps = tuple(
        _judge_tap(path, ours, forced, recording, model) for path in theirs if path in ours
    )
    found_flips = tuple(router_flips(ours, recording, model))
    taps = settled(_undecided_after(found_flips, taps))
    if forced is not None:
        taps = _with_hint(taps, forced, recording, model)
    elif recording.sample is not None:
        taps = _with_hint_from_sample(taps, ours, recording, model)
    details: dict[str, Any] = {"flips": found_flips, "versions": recording.versions}
    if "layers" in levels:
        details["left_out"] = (*recording.left_out, *_unpaired(ours, theirs))
    if recording.sample is not None:
        details["tokens"] = len(recording.arrays[LOGITS])
    if inputs.are_tokens:
        details |= _predictions(ours[LOGITS], recording, taps[-1].cumulative)
    return Forward(taps, details)


def _unpaired(ours: Arrays, theirs: Arrays) -> list[str]:
    """Returns the calls that only one side makes."""
    sides = ((ours, theirs, "model"), (theirs, ours, "reference"))
    return [
        f"{path} ({side} only)" for one, other, side in sides for path in one if path not in other
    ]


def _judge_tap(
    path: str, ours: Arrays, forced: Arrays | None, recording: Recording, model: Model
) -> TapResult:
    size, apart = recording.size(path), recording.departure(path, ours[path])
    compared = recording.unpadded(path)
    ulp_p50, ulp_p99, ulp_max = (
        apart * FLOAT32.unit_roundoff / recording.precision.unit_roundoff
        for apart in metrics.ulps(recording.unpadded(path, ours[path]), compared)
    )
    own = None
    if forced is not None and recording.forced is not None:
        own = recording.forced.judge(path, recording.departure(path, forced[path]), size)
    rms = size / math.sqrt(max(1, np.isfinite(compared).sum()))
    return TapResult(
        path=output_path(model) if path == LOGITS else path,
        cumulative=recording.free.judge(path, apart, size),
        forced=own,
        max_over_rms=relative(float(np.abs(apart).max()), rms),
        is_output=path == LOGITS,
        ulp_p50=ulp_p50,
        ulp_p99=ulp_p99,
        ulp_max=ulp_max,
        useful=recording.precision.useful,
    )


def _undecided_after(
    found_flips: Sequence[RouterFlips], taps: Iterable[TapResult]
) -> Iterator[TapResult]:
    """Yields the taps; after a router that rounding may flip, cumulative errors say nothing."""
    ties = {row.path for row in found_flips if row.tokens and row.is_tie}
    is_decided = True
    for tap in taps:
        if is_decided:
            yield tap
        else:
            open_error = dataclasses.replace(
                tap.cumulative,
                threshold=math.inf,
                outside=None,
                whole_threshold=None,
                is_suspect=False,
            )
            yield dataclasses.replace(tap, cumulative=open_error)
        is_decided = is_decided and tap.path not in ties


def _with_hint(
    taps: tuple[TapResult, ...], forced: Arrays, recording: Recording, model: Model
) -> tuple[TapResult, ...]:
    """Adds a hint to the first divergence, if its likely cause is known."""
    first = first_wrong(taps)
    if first is None or first.forced is None or not first.is_wrong_itself:
        return taps
    own = first.forced
    threshold = own.threshold if own.whole_threshold is None else own.whole_threshold
    hint = hint_of(_evidence(first, threshold, forced, recording, model))
    return tuple(dataclasses.replace(tap, hint=hint) if tap is first else tap for tap in taps)


def _with_hint_from_sample(
    taps: tuple[TapResult, ...], ours: Arrays, recording: Recording, model: Model
) -> tuple[TapResult, ...]:
    """Adds a hint to the first divergence of a sampled recording.

    All activations before it agree, so the model computed it from the reference's inputs.
    """
    first, found = first_wrong(taps), ModelRows(recording, ours)
    path = "" if first is None else LOGITS if first.is_output else first.path
    if first is None or path not in found:
        return taps
    theirs, threshold = ReferenceRows(recording, ours), first.cumulative.threshold
    around = theirs, found, LazyWeights(model)
    hint = hint_of_sample(Evidence(first.path, found[path], theirs[path], threshold, *around))
    return tuple(dataclasses.replace(tap, hint=hint) if tap is first else tap for tap in taps)


def _evidence(
    tap: TapResult, threshold: float, forced: Arrays, recording: Recording, model: Model
) -> Evidence:
    """Returns the evidence on a wrong activation, without padded rows if the others show it."""
    path, weights = LOGITS if tap.is_output else tap.path, LazyWeights(model)
    ours, theirs, rows = forced, recording.arrays, recording.whole_rows
    if rows is not None:  # at padding the two sides differ, which says nothing
        few_ours, few_theirs = Rows(ours, rows), Rows(theirs, rows)
        if not metrics.masked_relative_l2(few_ours[path], few_theirs[path]) <= threshold:
            ours, theirs = few_ours, few_theirs
        else:
            rows = None
    around = theirs, ours, weights, rows
    return Evidence(tap.path, ours[path], theirs[path], threshold, *around)


def _predictions(ours_BTV: np.ndarray, recording: Recording, decisive: Error) -> dict[str, Any]:
    """Returns the report's fields on logits: their errors, overall and by position."""
    ours, theirs = recording.unpadded(LOGITS, ours_BTV), recording.unpadded(LOGITS)
    kl = metrics.kl_per_token(ours, theirs)
    B, T = ours_BTV.shape[:2]
    positions = recording.unpadded(LOGITS, np.broadcast_to(np.arange(T), (B, T)))
    buckets = _buckets(ours, theirs, kl, positions, T)
    return {
        "logits": _judge_logits(ours, theirs, kl, recording, decisive),
        "buckets": tuple(buckets),
    }


def _judge_logits(
    ours: np.ndarray, theirs: np.ndarray, kl: np.ndarray, recording: Recording, error: Error
) -> LogitsResult:
    return LogitsResult(
        relative_l2=error.relative_l2,
        floor=error.floor,
        threshold=error.threshold if error.whole_threshold is None else error.whole_threshold,
        max_abs=metrics.masked_max_abs(ours, theirs),
        max_over_rms=metrics.max_over_rms(ours, theirs),
        kl_mean=float(kl.mean()),
        kl_max=float(kl.max()),
        top1_agreement=float(metrics.top1_agrees(ours, theirs).mean()),
        top1_unexplained=metrics.top1_unexplained(
            ours, theirs, ELEMENT_FACTOR * recording.largest[LOGITS]
        ),
    )


def _buckets(
    all_ours: np.ndarray, all_theirs: np.ndarray, all_kl: np.ndarray, at: np.ndarray, length: int
) -> Iterator[Bucket]:
    """Yields the errors of the logits by position range; `at` are their positions."""
    for start, stop in metrics.position_buckets(length):
        here = (at >= start) & (at < (length if stop is None else stop))
        if not here.any():
            continue  # all padding
        ours, theirs, kl = (x[here] for x in (all_ours, all_theirs, all_kl))
        yield Bucket(
            start=start,
            stop=stop,
            tokens=kl.size,
            relative_l2=metrics.masked_relative_l2(ours, theirs),
            kl_mean=float(kl.mean()),
            kl_max=float(kl.max()),
            top1_agreement=float(metrics.top1_agrees(ours, theirs).mean()),
        )
