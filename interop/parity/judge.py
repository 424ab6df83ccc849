"""The comparison itself: level by level, against the reference's own noise."""

import dataclasses
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax

from jaxllm.interop.families import Table
from jaxllm.models import with_scanned_layers
from jaxllm.models.decoder import Decoder
from jaxllm.params import stacks

from . import metrics, tolerance
from .decoding import compare_generation
from .recipe import Recipe
from .recording import Recording, record
from .report import Bucket, LogitsResult, Report
from .routing import flips
from .rows import LOGITS, TapResult
from .spelling import table_of
from .taps import Alignment, derive
from .trace_jax import PRECISION, trace_model
from .training import judge_curve, judge_gradients, judge_step, train_both
from .weights import compare_config, compare_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEVELS = ("weights", "config", "logits", "layers", "gradients", "step", "curve", "generate")
FORWARD = ("logits", "layers")
PACKAGES = ("jaxllm", "jax", "flax", "numpy", "optax")


def compare(
    reference: "PreTrainedModel",
    model: Decoder,
    tokens: np.ndarray,
    *,
    levels: Sequence[str] = LEVELS,
    recipe: Recipe | None = None,
    optimizer: optax.GradientTransformation | None = None,
) -> Report:
    """Whether `model` is what `reference` is and computes what it computes, or where they part.

    Both run in float32. Weights must agree in every bit and configs in every field. Elsewhere an
    error is too large if it exceeds the reference's own rounding noise, which is measured by
    computing the reference in other ways that are just as right.

    Args:
        reference: a causal language model of transformers; unchanged afterwards.
        model: ours, its layers stacked or not; unchanged as well.
        tokens: BT, token ids. Mistakes in positions show beyond the first few hundred only.
        levels: `weights`: every tensor, bit by bit; `config`: every field that bears on the
            numbers; `logits`: the predictions; `layers`: every step of every layer; `gradients`:
            of every parameter; `step`: AdamW's moments and update; `curve`: the loss of every step
            of training on the same batches; `generate`: greedy and beam search.
        recipe: how both are trained; by default 20 steps of AdamW.
        optimizer: ours, if it is to be another implementation of the recipe than optax's own. It
            is for the parameters of `model`.

    Raises:
        ValueError: a level is unknown, a dtype is not float32, the reference is of a family without
            rules, the two differ in their sizes, or the tokens are not in the vocabulary.
    """
    tokens_BT, recipe = np.asarray(tokens), recipe or Recipe()
    _check(reference, model, tokens_BT, levels)
    listed = with_scanned_layers(model, False)
    table = table_of(reference, model)
    found: dict[str, Sequence[Any]] = {}
    if "config" in levels:
        found["config"] = compare_config(reference, model)
    if "weights" in levels:
        found["weights"] = compare_weights(reference, listed, table)
    report = _report(type(reference).__name__, tokens_BT, ("torch", "transformers"))
    if set(FORWARD) & set(levels):
        report = _compare_forward(reference, listed, table, tokens_BT, levels)
    if {"gradients", "step", "curve"} & set(levels):
        steps = recipe.steps if "curve" in levels else 1
        rules = table.bound(stacks(listed))
        runs = train_both(reference, model, rules, tokens_BT, steps, recipe, optimizer)
        judges: dict[str, Any] = {
            "gradients": judge_gradients,
            "step": judge_step,
            "curve": judge_curve,
        }
        found |= {level: judged(runs) for level, judged in judges.items() if level in levels}
    if "generate" in levels:
        found["generate"] = compare_generation(reference, model, tokens_BT)
    held = {
        **report.verdicts,
        **{level: all(row.ok for row in rows) for level, rows in found.items()},
    }
    rows: dict[str, Any] = {level: tuple(rows) for level, rows in found.items()}
    return dataclasses.replace(report, verdicts={level: held[level] for level in levels}, **rows)


def _compare_forward(
    reference: "PreTrainedModel",
    listed: Decoder,
    table: Table,
    tokens_BT: np.ndarray,
    levels: Sequence[str],
) -> Report:
    """The levels of one forward pass."""
    taps = derive(table, listed, tokens_BT.shape) if "layers" in levels else ()
    recording = record(reference, tokens_BT, Alignment(taps))
    ours = trace_model(listed, tokens_BT, [path for path in recording.arrays if path != LOGITS])
    wanted = [level for level in levels if level in FORWARD]
    report = judge(recording, ours, wanted, subject=type(reference).__name__)
    if listed.config.experts is None:
        return report
    top_k = listed.config.experts.top_k
    found = flips(ours, recording.arrays, recording.routers, top_k)
    return dataclasses.replace(report, flips=tuple(found))


def judge(
    recording: Recording, ours: dict[str, np.ndarray], levels: Sequence[str], subject: str
) -> Report:
    """The report on our trace, given the reference's."""
    kl_BT = _kl(ours[LOGITS], recording.arrays[LOGITS])
    logits = _judge_logits(ours[LOGITS], kl_BT, recording)
    taps = tuple(
        _judge_tap(path, ours[path], recording)
        for path in recording.arrays
        if ("logits" if path == LOGITS else "layers") in levels
    )
    held = {
        "logits": logits.ok,
        "layers": all(tap.ok for tap in taps if tap.path != LOGITS),
    }
    report = _report(subject, recording.tokens_BT, ())
    return dataclasses.replace(
        report,
        verdicts={level: held[level] for level in levels},
        taps=taps,
        logits=logits,
        buckets=tuple(_buckets(ours[LOGITS], recording.arrays[LOGITS], kl_BT)),
        versions={**report.versions, **recording.versions},
    )


def _report(subject: str, tokens_BT: np.ndarray, packages: Sequence[str]) -> Report:
    """A report on nothing yet: what is compared, on what and with what."""
    batch_size, length = tokens_BT.shape
    return Report(
        subject=subject,
        verdicts={},
        batch_size=batch_size,
        length=length,
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


def _judge_tap(path: str, ours: np.ndarray, recording: Recording) -> TapResult:
    theirs, floor = recording.arrays[path], recording.floors[path]
    ulp_p50, ulp_p99, ulp_max = metrics.ulps(ours, theirs)
    return TapResult(
        path=path,
        relative_l2=metrics.relative_l2(ours, theirs),
        max_over_rms=metrics.max_over_rms(ours, theirs),
        floor=floor,
        threshold=tolerance.threshold(floor),
        ulp_p50=ulp_p50,
        ulp_p99=ulp_p99,
        ulp_max=ulp_max,
    )


def _kl(ours_BTV: np.ndarray, theirs_BTV: np.ndarray) -> np.ndarray:
    if ours_BTV.shape != theirs_BTV.shape:
        raise ValueError(f"logits of the reference are {theirs_BTV.shape}, ours {ours_BTV.shape}")
    return metrics.kl_per_token(ours_BTV, theirs_BTV)


def _judge_logits(ours_BTV: np.ndarray, kl_BT: np.ndarray, recording: Recording) -> LogitsResult:
    theirs_BTV, floor = recording.arrays[LOGITS], recording.floors[LOGITS]
    return LogitsResult(
        relative_l2=metrics.relative_l2(ours_BTV, theirs_BTV),
        floor=floor,
        threshold=tolerance.threshold(floor),
        max_abs=metrics.max_abs(ours_BTV, theirs_BTV),
        max_over_rms=metrics.max_over_rms(ours_BTV, theirs_BTV),
        kl_mean=float(kl_BT.mean()),
        kl_max=float(kl_BT.max()),
        top1_agreement=float(metrics.top1_agrees(ours_BTV, theirs_BTV).mean()),
        top1_unexplained=metrics.top1_unexplained(
            ours_BTV, theirs_BTV, tolerance.NOISE_FACTOR * recording.logits_noise
        ),
    )


def _buckets(ours_BTV: np.ndarray, theirs_BTV: np.ndarray, kl_BT: np.ndarray) -> Iterator[Bucket]:
    for start, stop in metrics.position_buckets(ours_BTV.shape[1]):
        ours, theirs, kl = (x[:, start:stop] for x in (ours_BTV, theirs_BTV, kl_BT))
        yield Bucket(
            start=start,
            stop=stop,
            tokens=kl.size,
            relative_l2=metrics.relative_l2(ours, theirs),
            kl_mean=float(kl.mean()),
            kl_max=float(kl.max()),
            top1_agreement=float(metrics.top1_agrees(ours, theirs).mean()),
        )


def _check(
    reference: "PreTrainedModel", model: Decoder, tokens_BT: np.ndarray, levels: Sequence[str]
) -> None:
    """Refuses what cannot be compared."""
    if not levels or not set(levels) <= set(LEVELS):
        raise ValueError(f"levels={levels!r} are not of {', '.join(LEVELS)}")
    dtypes = {str(parameter.dtype) for parameter in reference.parameters()}
    if dtypes != {"torch.float32"}:
        raise ValueError(
            f"the reference is {', '.join(sorted(dtypes))}; parity is judged in float32"
        )
    if model.config.dtype != "float32":
        raise ValueError(f"dtype={model.config.dtype!r} of the model; parity is judged in float32")
    if tokens_BT.ndim != 2 or tokens_BT.dtype.kind not in "iu" or not tokens_BT.size:
        raise ValueError(f"tokens are {tokens_BT.dtype}{tokens_BT.shape}, not integers (B, T)")
    low, high, vocab = tokens_BT.min(), tokens_BT.max(), model.config.vocab_size
    if low < 0 or high >= vocab:
        raise ValueError(f"tokens from {low} to {high} are not in the vocabulary of {vocab}")
