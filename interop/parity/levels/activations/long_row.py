"""A row longer than the windows and chunks of attention, whose ends shorter inputs never reach."""

import dataclasses
from typing import NamedTuple

from jaxllm.interop.parity.alignment.adapters import adapter_of
from jaxllm.interop.parity.alignment.function_model import FunctionModel
from jaxllm.interop.parity.alignment.inputs import Inputs, output_config, sequences_of
from jaxllm.interop.parity.levels.sides import Comparison
from jaxllm.models import EncoderDecoder, Model, TokenModel

PAST = 16  # tokens past the end of the longest window or chunk
MOST_SCORES = 10**8  # attention scores of a layer, in a row that is worth its time


class LongRow(NamedTuple):
    """A row past the windows and chunks that the inputs are too short for, and those left unseen.

    Attributes:
        inputs: a row that reaches the ends of all windows and chunks; None if it would cost too
            much, or the inputs reach them.
        unseen: the windows and chunks that no input reaches the end of, as phrases.
    """

    inputs: Inputs | None
    unseen: tuple[str, ...]


def long_row(comparison: Comparison) -> LongRow:
    """Returns a row past the ends of all windows and chunks that the inputs do not reach."""
    model, length = comparison.model, comparison.inputs.target.shape[1]
    spans = {what: span for what, span in spans_of(model).items() if span >= length}
    if not spans:
        return LongRow(None, ())
    needed = min(max(spans.values()) + PAST, sequences_of(model)["target"].longest)
    if _is_affordable(model, needed):
        return LongRow(_drawn(comparison, needed), ())
    return LongRow(None, tuple(f"the {what} of {span:,} tokens" for what, span in spans.items()))


def spans_of(model: Model) -> dict[str, int]:
    """Returns how many tokens the windows and chunks of attention have.

    Those that are as long as the longest sequence never hide anything.
    """
    if isinstance(model, FunctionModel) or not isinstance(model, TokenModel):
        return {}
    config = output_config(model)
    spans = {"window": config.attention.window, "chunk": config.attention.chunk}
    longest = sequences_of(model)["target"].longest
    return {
        f"attention {what}": span
        for what, span in spans.items()
        if span is not None and span < longest
    }


def _is_affordable(model: Model, length: int) -> bool:
    """Whether such a row is computed in little time."""
    num_scores = output_config(model).num_heads * length**2
    return not isinstance(model, EncoderDecoder) and num_scores <= MOST_SCORES


def _drawn(comparison: Comparison, length: int) -> Inputs:
    """Draws one row of text, where the inputs are text, or of random tokens."""
    model, given = comparison.model, comparison.inputs
    sequence = sequences_of(model)["target"]
    if given.further is not None:
        target = given.further.draw("target", (1, length), 0)
    else:
        target = sequence.draw(1, length, seed=0)
    unused = adapter_of(comparison.reference).padding_token(comparison.reference)
    return dataclasses.replace(Inputs(target), further=given.further).replace_token(unused, model)
