"""Forward stage: compares a forward pass and, where windows are longer, one of a longer row."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxllm.interop.parity.alignment.inputs import Inputs, output_config
from jaxllm.interop.parity.levels.level import Stage
from jaxllm.interop.parity.levels.sides import Comparison, JaxSide
from jaxllm.interop.parity.recording.recording import Recording
from jaxllm.interop.parity.recording.sample import Sample

from .forward import Forward, judge, record_forward
from .long_row import PAST, long_row

LOGITS_ONLY = ("logits",)
FEATURES = 4096  # kept of each token of a longer row


def compare_forward(comparison: Comparison) -> Forward:
    """Compares one forward pass and, where it is needed and cheap, one of a longer row."""
    model, store = comparison.unstacked, comparison.store
    found = judge(record_forward(comparison), model, comparison.levels, store)
    longer = long_row(comparison)
    if longer.inputs is not None:
        recording = record_forward(_on_long_row(comparison, longer.inputs))
        found = _with_long_row(found, judge(recording, model, LOGITS_ONLY, store))
    return _with_unseen(found, longer.unseen)


def _on_long_row(comparison: Comparison, inputs: Inputs) -> Comparison:
    """Returns the comparison of the last tokens of a longer row, at the level of logits.

    With experts, all tokens are kept: rounding may send any of them elsewhere.
    """
    length = inputs.target.shape[1]
    sample = Sample(tuple(range(length - PAST, length)), FEATURES)
    whole = output_config(comparison.model).experts is not None
    changed: dict[str, Any] = {"inputs": inputs, "sample": None if whole else sample}
    return dataclasses.replace(comparison, levels=LOGITS_ONLY, **changed)


def _with_long_row(found: Forward, longer: Forward) -> Forward:
    row = longer.taps[-1]
    named = dataclasses.replace(row, path=f"{row.path} of a longer row")
    return dataclasses.replace(found, taps=(*found.taps, named))


def _with_unseen(found: Forward, unseen: Sequence[str]) -> Forward:
    return dataclasses.replace(found, details={**found.details, "unseen": tuple(unseen)})


def record_for_pack(comparison: Comparison) -> dict[str, Any]:
    """Records the reference's activations and, where it is needed, the logits of a longer row."""
    longer = long_row(comparison)
    kept = record_forward(comparison).to_pack()
    row = longer.inputs and record_forward(_on_long_row(comparison, longer.inputs)).to_pack()
    return {**kept, "long_row": row, "unseen": list(longer.unseen)}


def check_forward(recorded: Mapping[str, Any], ours: JaxSide) -> Forward:
    """Judges the model by a recording of a pack; those of earlier versions have no longer row."""
    kept = dict(recorded)
    row, unseen = kept.pop("long_row", None), kept.pop("unseen", ())
    found = judge(Recording.from_pack(kept), ours.unstacked, ours.levels)
    if row is not None:
        longer = judge(Recording.from_pack(row), ours.unstacked, LOGITS_ONLY)
        found = _with_long_row(found, longer)
    return _with_unseen(found, unseen)


FORWARD = Stage(
    name="forward",
    compare=compare_forward,
    record=record_for_pack,
    check=check_forward,
    details=lambda forward: forward.details,
    runs=lambda levels, draws: 3 + draws + ("layers" in levels) * (1 + draws),
)
