"""The levels of one forward pass: every step and the predictions, against a recording."""

import dataclasses
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from jaxllm.errors import UserError
from jaxllm.interop.parity.alignment.activations import output_path
from jaxllm.interop.parity.alignment.inputs import Inputs, last_stack
from jaxllm.interop.parity.alignment.router_flips import flips
from jaxllm.interop.parity.diagnosis.evidence import Evidence
from jaxllm.interop.parity.diagnosis.hints import hint_of
from jaxllm.interop.parity.execution.jax_parameters import LazyWeights
from jaxllm.interop.parity.execution.jax_trace import PRECISION, trace_both, trace_model
from jaxllm.interop.parity.numerics import metrics, tolerance
from jaxllm.interop.parity.numerics.array_store import Shelf, in_memory
from jaxllm.interop.parity.recording.recording import Recording
from jaxllm.interop.parity.report.report import Bucket, LogitsResult, Report
from jaxllm.interop.parity.report.rows import LOGITS, Error, RouterFlips, TapResult, first_wrong
from jaxllm.models import Model

FORWARD = ("logits", "layers")
PACKAGES = ("jaxllm", "jax", "flax", "numpy", "optax")

Arrays = Mapping[str, np.ndarray]


def judge(
    recording: Recording,
    model: Model,
    levels: Sequence[str],
    subject: str,
    shelf: Shelf = in_memory,
) -> Report:
    """The report on our model, its layers one by one, given what the reference computed.

    Raises:
        UserError: the logits are of another size than the reference's, or the model lacks a step.
    """
    inputs, theirs = recording.inputs, recording.arrays
    forced: Arrays | None = None
    if "layers" in levels and recording.sample is None:
        ours, forced = trace_both(model, inputs, theirs, shelf)
    else:
        paths = [path for path in theirs if path != LOGITS] if "layers" in levels else []
        ours = trace_model(model, inputs, paths)
    found, wanted = (
        x.shape for x in (recording.real(LOGITS, ours[LOGITS]), recording.real(LOGITS))
    )
    if found != wanted:
        raise UserError(f"logits of the reference are {wanted}, ours {found}")
    taps = tuple(
        _judge_tap(path, ours, forced, recording, model)
        for path in theirs
        if ("logits" if path == LOGITS else "layers") in levels
    )
    if forced is not None:
        taps = _with_hint(taps, forced, recording, model)
    held = {
        "logits": all(tap.ok for tap in taps if tap.is_output),
        "layers": all(tap.ok for tap in taps if not tap.is_output),
    }
    report = blank_report(subject, inputs, ())
    return dataclasses.replace(
        report,
        verdicts={level: held[level] for level in levels},
        taps=taps,
        flips=tuple(_flips(ours, recording, model)),
        versions={**report.versions, **recording.versions},
        **(_predictions(ours[LOGITS], recording) if inputs.are_tokens else {}),
    )


def _judge_tap(
    path: str, ours: Arrays, forced: Arrays | None, recording: Recording, model: Model
) -> TapResult:
    theirs, own = recording.real(path), recording.real(path, ours[path])
    ulp_p50, ulp_p99, ulp_max = metrics.ulps(own, theirs)
    return TapResult(
        path=output_path(model) if path == LOGITS else path,
        cumulative=_error(path, ours, recording, recording.floors),
        forced=None if forced is None else _error(path, forced, recording, recording.forced_floors),
        max_over_rms=metrics.max_over_rms(own, theirs),
        is_output=path == LOGITS,
        ulp_p50=ulp_p50,
        ulp_p99=ulp_p99,
        ulp_max=ulp_max,
    )


def _error(path: str, ours: Arrays, recording: Recording, floors: Mapping[str, float]) -> Error:
    found = metrics.relative_l2(recording.real(path, ours[path]), recording.real(path))
    return Error(found, floors[path], tolerance.threshold(floors[path]))


def _with_hint(
    taps: tuple[TapResult, ...], forced: Arrays, recording: Recording, model: Model
) -> tuple[TapResult, ...]:
    """The taps, the first divergence of them with what it looks like, if that is known."""
    first = first_wrong(taps)
    if first is None or first.forced is None or not first.is_wrong_itself:
        return taps
    path = LOGITS if first.is_output else first.path
    theirs, ours = recording.arrays, forced[path]
    threshold, weights = first.forced.threshold, LazyWeights(model)
    hint = hint_of(Evidence(first.path, ours, theirs[path], threshold, theirs, forced, weights))
    return tuple(dataclasses.replace(tap, hint=hint) if tap is first else tap for tap in taps)


def _flips(ours: Arrays, recording: Recording, model: Model) -> list[RouterFlips]:
    experts = last_stack(model).experts  # which are those of both stacks
    if experts is None:
        return []
    real = recording.real
    others = {path: noisy for path, noisy in recording.routers.items() if path in ours}
    return flips(
        {path: real(path, ours[path]) for path in others},
        {path: real(path) for path in others},
        others,
        experts.top_k,
    )


def _predictions(ours_BTV: np.ndarray, recording: Recording) -> dict[str, Any]:
    """What a report says of logits, the padding left out."""
    ours, theirs = recording.real(LOGITS, ours_BTV), recording.real(LOGITS)
    kl = metrics.kl_per_token(ours, theirs)
    B, T = ours_BTV.shape[:2]
    positions = recording.real(LOGITS, np.broadcast_to(np.arange(T), (B, T)))
    buckets = _buckets(ours, theirs, kl, positions, T)
    return {"logits": _judge_logits(ours, theirs, kl, recording), "buckets": tuple(buckets)}


def _judge_logits(
    ours: np.ndarray, theirs: np.ndarray, kl: np.ndarray, recording: Recording
) -> LogitsResult:
    floor = recording.floors[LOGITS]
    return LogitsResult(
        relative_l2=metrics.relative_l2(ours, theirs),
        floor=floor,
        threshold=tolerance.threshold(floor),
        max_abs=metrics.max_abs(ours, theirs),
        max_over_rms=metrics.max_over_rms(ours, theirs),
        kl_mean=float(kl.mean()),
        kl_max=float(kl.max()),
        top1_agreement=float(metrics.top1_agrees(ours, theirs).mean()),
        top1_unexplained=metrics.top1_unexplained(
            ours, theirs, tolerance.NOISE_FACTOR * recording.logits_noise
        ),
    )


def _buckets(
    all_ours: np.ndarray, all_theirs: np.ndarray, all_kl: np.ndarray, at: np.ndarray, length: int
) -> Iterator[Bucket]:
    """The logits of every range of positions, given the position of each."""
    for start, stop in metrics.position_buckets(length):
        here = (at >= start) & (at < (length if stop is None else stop))
        if not here.any():
            continue  # all padding
        ours, theirs, kl = (x[here] for x in (all_ours, all_theirs, all_kl))
        yield Bucket(
            start=start,
            stop=stop,
            tokens=kl.size,
            relative_l2=metrics.relative_l2(ours, theirs),
            kl_mean=float(kl.mean()),
            kl_max=float(kl.max()),
            top1_agreement=float(metrics.top1_agrees(ours, theirs).mean()),
        )


def blank_report(subject: str, inputs: Inputs, packages: Sequence[str]) -> Report:
    """A report on nothing yet: what is compared, on what and with what."""
    batch_size, length = inputs.target.shape[:2]
    return Report(
        subject=subject,
        verdicts={},
        batch_size=batch_size,
        length=length,
        tokens=inputs.num_tokens,
        seed=None,
        dtypes={
            "reference": "float32, plain attention",
            "model": f"float32, matmul precision {PRECISION}",
            "metrics": "float64",
        },
        versions={
            "python": platform.python_version(),
            **{package: version(package) for package in (*PACKAGES, *packages)},
            "device": jax.devices()[0].device_kind,
        },
        tolerance={
            "noise_factor": tolerance.NOISE_FACTOR,
            "least": tolerance.LEAST,
            "most": tolerance.MOST,
            "most_in_training": tolerance.MOST_IN_TRAINING,
        },
    )
