"""The comparison itself: two traces, tap by tap, against the reference's own noise."""

import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

import jax
import numpy as np

from jaxllm.interop.families import FAMILIES, Layout, Table
from jaxllm.models.decoder import Decoder, with_scanned_layers

from . import metrics, tolerance
from .recording import Recording, record
from .report import Bucket, LogitsResult, Report, TapResult
from .taps import LOGITS, Alignment, derive
from .trace_jax import PRECISION, trace_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEVELS = ("logits", "layers")
PACKAGES = ("jaxllm", "jax", "flax", "numpy")


def compare(
    reference: "PreTrainedModel",
    model: Decoder,
    tokens: np.ndarray,
    *,
    levels: Sequence[str] = LEVELS,
) -> Report:
    """Whether `model` computes what `reference` computes, and if not, where they part.

    Both run in float32. An error is too large if it exceeds the reference's own rounding noise,
    which is measured by computing the reference in other ways that are just as right.

    Args:
        reference: a causal language model of transformers; unchanged afterwards.
        model: ours, its layers stacked or not.
        tokens: BT, token ids. Mistakes in positions show beyond the first few hundred only.
        levels: `logits`: the predictions; `layers`: every step of every layer.

    Raises:
        ValueError: a level is unknown, a dtype is not float32, the reference is of a family without
            taps, the two differ in their sizes, or the tokens are not in the vocabulary.
    """
    tokens_BT = np.asarray(tokens)
    _check(reference, model, tokens_BT, levels)
    listed = with_scanned_layers(model, False)
    taps = derive(_table(reference, model), listed, tokens_BT.shape) if "layers" in levels else ()
    recording = record(reference, tokens_BT, Alignment(taps))
    ours = trace_model(listed, tokens_BT, [path for path in recording.arrays if path != LOGITS])
    return judge(recording, ours, levels, subject=type(reference).__name__)


def judge(
    recording: Recording, ours: dict[str, np.ndarray], levels: Sequence[str], subject: str
) -> Report:
    """The report on our trace, given the reference's."""
    batch_size, length = recording.tokens_BT.shape
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
    return Report(
        subject=subject,
        verdicts={level: held[level] for level in levels},
        taps=taps,
        logits=logits,
        buckets=tuple(_buckets(ours[LOGITS], recording.arrays[LOGITS], kl_BT)),
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
            **{package: version(package) for package in PACKAGES},
            **recording.versions,
            "device": jax.devices()[0].device_kind,
        },
        tolerance={
            "noise_factor": tolerance.NOISE_FACTOR,
            "least": tolerance.LEAST,
            "most": tolerance.MOST,
        },
    )


def _table(reference: "PreTrainedModel", model: Decoder) -> Table:
    """How the reference's tensors are named, and laid out in ours."""
    known = {family.model_type: family for family in FAMILIES if family.format == "hf"}
    model_type = reference.config.model_type
    if model_type not in known:
        names = ", ".join(map(str, known))
        raise ValueError(f"model_type={model_type!r} is not of a known family, only {names} are")
    return known[model_type].table(model.config, Layout())


def _judge_tap(path: str, ours: np.ndarray, recording: Recording) -> TapResult:
    theirs, floor = recording.arrays[path], recording.floors[path]
    return TapResult(
        path=path,
        relative_l2=metrics.relative_l2(ours, theirs),
        max_over_rms=metrics.max_over_rms(ours, theirs),
        floor=floor,
        threshold=tolerance.threshold(floor),
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
