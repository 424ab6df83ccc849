"""Parity reports of a tiny model: one that holds, one that fails, one with NaN."""

import dataclasses

from jaxllm.interop.parity import Report
from jaxllm.interop.parity.report.activation_rows import Error, TapResult
from jaxllm.interop.parity.report.judged import Judged
from jaxllm.interop.parity.report.report import Bucket, LogitsResult

NAN = float("nan")


def tap(path: str, relative_l2: float) -> TapResult:
    own = Error(relative_l2 / 2, floor=1e-7, threshold=1e-6)
    return TapResult(path, Error(relative_l2, 3e-7, 1.2e-6), 4 * relative_l2, own)


def make_report(error: float = 4e-7) -> Report:
    logits = LogitsResult(error, 3e-7, 1.2e-6, 1e-5, 2e-5, 1e-12, 1e-11, 1.0, 0)
    steps = ("attn_norm", "attn", "mlp_norm", "mlp")
    layers = [f"layers.{i}{step}" for i in range(2) for step in (*(f".{s}" for s in steps), "")]
    taps = [tap("embed", 0.0), *(tap(path, 3e-7) for path in layers), tap("final_norm", 3e-7)]
    if not logits.ok:
        taps[4] = tap(taps[4].path, error)
    return Report(
        subject="tiny <llama>",
        verdicts={"logits": logits.ok, "layers": logits.ok},
        rows={
            "layers": tuple(taps),
            "logits": (dataclasses.replace(tap("lm_head", error), is_output=True),),
        },
        logits=logits,
        buckets=(Bucket(0, 4, 8, error, 1e-13, 1e-12, 1.0), Bucket(4, 32, 56, error, 0, 0, 0.9)),
        batch_size=2,
        length=32,
        tokens=64,
        seed=7,
        dtypes={"model": "float32"},
        versions={"jax": "0.10.2"},
        tolerance={"false_alarms": 1e-3, "draws": 4, "draws_to_decide": 20},
    )


def with_rows(report: Report, **rows: tuple[Judged, ...]) -> Report:
    """Returns the report with other rows at these levels, ordered from causes to effects."""
    order = ("config", "weights", "layers", "logits", "gradients", "step", "curve", "generate")
    merged = {**report.rows, **rows}
    return dataclasses.replace(report, rows={n: merged[n] for n in order if n in merged})


REPORTS = {"honest": make_report(), "broken": make_report(0.27), "nan": make_report(NAN)}
