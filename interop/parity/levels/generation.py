"""The level of generation: the same tokens, greedy and by beams, out of a cache."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxllm.generation import beam_search, generate
from jaxllm.generation.incremental import decode_step, prefill
from jaxllm.interop.parity.alignment.adapters import calling_of
from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.execution.jax_trace import PRECISION
from jaxllm.interop.parity.execution.torch_decode import (
    NEW_TOKENS,
    NUM_BEAMS,
    SAMPLING,
    Decoded,
    Prompted,
)
from jaxllm.interop.parity.numerics import metrics, tolerance
from jaxllm.interop.parity.recording.plain import plain
from jaxllm.interop.parity.report.rows import ScoresResult, TextResult
from jaxllm.models import EncoderDecoder, TokenModel, with_scanned_layers
from jaxllm.sharding import to_host

from .generation_vectors import Continued, compare_vectors, continue_vectors, judge_vectors
from .level import Stage
from .pair import Ours, Pair

# The lengths of prompts, as far as the tokens reach: windows and chunks end within some of them.
LENGTHS = (1, 9, 34, 97)
Predict = Callable[[Sequence[list[int]], Sequence[Sequence[int]]], np.ndarray]
START_TOKEN = 1  # of targets, where the config leaves it to others


def compare_generation(pair: Pair) -> Sequence[TextResult | ScoresResult]:
    """Prompts of several lengths cut from the inputs, continued by both sides.

    Of an encoder-decoder the prompts are sources, and what follows is a target.
    """
    if not isinstance(pair.model, TokenModel):
        return compare_vectors(pair.reference, pair.model, pair.inputs)
    prompted, theirs = decode_reference(pair.reference, pair.model, pair.inputs)
    return judge_generation(pair.model, theirs, prompted.logits)


def record_generation(pair: Pair) -> dict[str, Any]:
    """What the reference continues the inputs with, as a pack keeps it."""
    if not isinstance(pair.model, TokenModel):
        return plain(continue_vectors(pair.reference, pair.inputs))
    return plain(decode_reference(pair.reference, pair.model, pair.inputs)[1])


def check_generation(
    recorded: Mapping[str, Any], ours: Ours
) -> Sequence[TextResult | ScoresResult]:
    """Our continuations against recorded ones."""
    listed = ours.listed
    if not isinstance(listed, TokenModel):
        prompt = Inputs(**recorded["prompt"])
        return judge_vectors(listed, Continued(**{**recorded, "prompt": prompt}))
    ties = frozenset((row, token) for row, token in recorded["ties"])

    def predict(prompts: Sequence[list[int]], new: Sequence[Sequence[int]]) -> np.ndarray:
        # The reference cannot be asked; that our logits are its own is what the other rows say.
        with jax.default_matmul_precision(PRECISION):
            return forced_logits(listed, prompts, new)

    return judge_generation(listed, Decoded(**{**recorded, "ties": ties}), predict)


def decode_reference(reference: Any, model: TokenModel, inputs: Inputs) -> tuple[Prompted, Decoded]:
    """The reference as one that continues prompts, and its continuations of the inputs' prompts."""
    prompts = prompts_of(inputs.without(calling_of(reference).padding(reference), model))
    prompted = Prompted(reference, _starting(model)[1])
    return prompted, prompted.decode(prompts)


def judge_generation(
    model: TokenModel, theirs: Decoded, predict: Predict
) -> list[TextResult | ScoresResult]:
    """Our continuations of the reference's prompts against its own.

    `predict` says by what logits the reference would choose given tokens, PNV: where both sides
    part it decides whether that is a tie.
    """
    prompts = theirs.prompts
    listed, _ = _starting(with_scanned_layers(model, False))
    with jax.default_matmul_precision(PRECISION):
        logits_PNV = forced_logits(listed, prompts, theirs.greedy)
        greedy = generate(listed, prompts, NEW_TOKENS)
        beams = beam_search(listed, prompts, NEW_TOKENS, num_beams=NUM_BEAMS)
    rows: list[TextResult | ScoresResult] = [_judge_logits(logits_PNV, theirs)]
    rows.append(_judge_filtered(logits_PNV, theirs))
    for i, prompt in enumerate(prompts):
        one, other = greedy[i], theirs.greedy[i]
        is_tie = is_greedy_tie(one, other, theirs.logits_PNV[i], theirs.noise)
        rows.append(_text("greedy", prompt, one, other, is_tie))
    for prompt, one, other in zip(prompts, beams, theirs.beams, strict=True):
        is_tie = one != other and _is_beam_tie(predict, prompt, one, other, theirs.noise)
        rows.append(_text("beams", prompt, one, other, is_tie))
    return rows


def _starting(model: TokenModel) -> tuple[TokenModel, int | None]:
    """The model with a token for a target to begin with, and that token, if it has targets."""
    if not isinstance(model, EncoderDecoder):
        return model, None
    if model.config.start_token is None:
        model = nnx.merge(*nnx.split(model))
        model.config = dataclasses.replace(model.config, start_token=START_TOKEN)
    return model, model.config.start_token


def _text(
    how: str, prompt: Sequence[int], ours: Sequence[int], theirs: Sequence[int], is_tie: bool
) -> TextResult:
    return TextResult(f"generate.{how}", len(prompt), tuple(ours), tuple(theirs), is_tie)


def prompts_of(inputs: Inputs) -> list[list[int]]:
    """Prompts of unequal lengths, from the rows in turn and each from another place."""
    tokens, mask = inputs.target, inputs.target_mask
    if inputs.source is not None:
        tokens, mask = inputs.source, inputs.source_mask
    rows = list(tokens) if mask is None else [t[m != 0] for t, m in zip(tokens, mask, strict=True)]
    lengths = sorted({min(wanted, *map(len, rows)) for wanted in LENGTHS})
    starts = [(7 * i) % (min(map(len, rows)) - wanted + 1) for i, wanted in enumerate(lengths)]
    return [
        rows[i % len(rows)][start : start + wanted].tolist()
        for i, (wanted, start) in enumerate(zip(lengths, starts, strict=True))
    ]


def forced_logits(
    model: TokenModel, prompts: Sequence[list[int]], continuations: Sequence[Sequence[int]]
) -> np.ndarray:
    """Our logits of given continuations, token by token out of a cache: PNV."""
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    tokens = np.zeros((len(prompts), lengths.max()), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    graphdef, state = nnx.split(model)
    new = np.asarray(continuations, np.int32)
    logits_PNV = _steps(graphdef, nnx.to_pure_dict(state), tokens, lengths, new)
    return to_host(logits_PNV).astype(np.float32, copy=False)


@functools.partial(jax.jit, static_argnums=0)
def _steps(
    graphdef: nnx.GraphDef,
    params: dict,
    tokens_PT: jax.Array,
    lengths_P: jax.Array,
    new_PN: jax.Array,
) -> jax.Array:
    whole: TokenModel = nnx.merge(graphdef, nnx.State(params))
    start = prefill(whole, tokens_PT, lengths_P, new_PN.shape[1])

    def step(carry: tuple, i: jax.Array) -> tuple:
        x_PD, cache = carry
        return decode_step(start, cache, new_PN, i), start.model.unembed(x_PD[:, None])[:, 0]

    places = jnp.arange(new_PN.shape[1])
    logits_NPV: jax.Array = jax.lax.scan(step, (start.x_BD, start.cache), places)[1]
    return logits_NPV.swapaxes(0, 1)


def _judge_logits(ours_PNV: np.ndarray, theirs: Decoded) -> ScoresResult:
    error = metrics.relative_l2(ours_PNV, theirs.logits_PNV)
    return ScoresResult("generate.logits", error, theirs.floor, tolerance.threshold(theirs.floor))


def _judge_filtered(ours_PNV: np.ndarray, theirs: Decoded) -> ScoresResult:
    """The logits that a token would be drawn from, after temperature, top-k and top-p."""
    V = ours_PNV.shape[-1]
    ours = np.asarray(SAMPLING.filter_logits(jnp.asarray(ours_PNV.reshape(-1, V))))
    kept, reference = theirs.kept_PNV.reshape(-1, V), theirs.logits_PNV.reshape(-1, V)
    apart = {(int(row), int(token)) for row, token in np.argwhere(np.isfinite(ours) != kept)}
    both = np.isfinite(ours) & kept
    error = metrics.relative_l2(ours[both], reference[both] / np.float32(SAMPLING.temperature))
    floor = theirs.filtered_floor
    unexplained = len(apart - theirs.ties)
    threshold = tolerance.threshold(floor)
    return ScoresResult("generate.filtered", error, floor, threshold, unexplained)


def is_greedy_tie(
    ours: Sequence[int], theirs: Sequence[int], logits_NV: np.ndarray, noise: float
) -> bool:
    """Whether the two part where the reference's likeliest tokens are within noise."""
    places = [place for place, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
    if not places:
        return False
    logits_V = logits_NV[places[0]]
    return bool(logits_V.max() - logits_V[ours[places[0]]] <= 2 * noise)


def _is_beam_tie(
    predict: Predict, prompt: list[int], ours: list[int], theirs: list[int], noise: float
) -> bool:
    """Whether the reference deems both continuations as likely, within noise."""
    pair = predict([prompt, prompt], [ours, theirs]).astype(np.float64)
    totals = []
    logits_NV: np.ndarray
    for logits_NV, new in zip(pair, (ours, theirs), strict=True):
        log_sums = np.logaddexp.reduce(logits_NV, axis=-1)
        totals.append((logits_NV[np.arange(len(new)), new] - log_sums).sum())
    return abs(totals[0] - totals[1]) <= 2 * noise * len(ours)


GENERATION = Stage(
    name="generate",
    compare=compare_generation,
    record=record_generation,
    check=check_generation,
)
