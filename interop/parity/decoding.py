"""The level of generation: the same tokens, greedy and by beams, out of a cache."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxllm.generation import Sampling, beam_search, generate
from jaxllm.models import with_scanned_layers
from jaxllm.models.decoder import Decoder

from . import metrics, tolerance
from .noise import WAYS
from .rows import ScoresResult, TextResult
from .trace_jax import PRECISION
from .trace_torch import prepared

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NEW_TOKENS = 16
NUM_BEAMS = 4
# The lengths of prompts, as far as the tokens reach: windows and chunks end within some of them.
LENGTHS = (1, 9, 34, 97)
# Filters that all do something. No token is ever drawn.
SAMPLING = Sampling(temperature=0.7, top_k=20, top_p=0.9)


class Decoded(NamedTuple):
    """What the reference continues prompts with, and what it was chosen by."""

    greedy: list[list[int]]
    beams: list[list[int]]
    logits_PNV: np.ndarray  # of each prompt at each of its greedy new tokens
    others_PNV: list[np.ndarray]  # the same, computed otherwise


def compare_generation(
    reference: "PreTrainedModel", model: Decoder, tokens_BT: np.ndarray
) -> list[TextResult | ScoresResult]:
    """Prompts of several lengths cut from the tokens, continued by both sides."""
    prompts = prompts_of(tokens_BT)
    theirs = _decode(reference, prompts)
    with jax.default_matmul_precision(PRECISION):
        listed = with_scanned_layers(model, False)
        logits_PNV = _forced(listed, prompts, theirs.greedy)
        greedy = generate(listed, prompts, NEW_TOKENS)
        beams = beam_search(listed, prompts, NEW_TOKENS, num_beams=NUM_BEAMS)
    noise = max(metrics.max_abs(other, theirs.logits_PNV) for other in theirs.others_PNV)
    noise *= tolerance.NOISE_FACTOR
    rows: list[TextResult | ScoresResult] = [_judge_logits(logits_PNV, theirs)]
    rows.append(_judge_filtered(logits_PNV, theirs, noise))
    for i, prompt in enumerate(prompts):
        one, other = greedy[i], theirs.greedy[i]
        is_tie = _is_greedy_tie(one, other, theirs.logits_PNV[i], noise)
        rows.append(_text("greedy", prompt, one, other, is_tie))
    for prompt, one, other in zip(prompts, beams, theirs.beams, strict=True):
        is_tie = one != other and _is_beam_tie(reference, prompt, one, other, noise)
        rows.append(_text("beams", prompt, one, other, is_tie))
    return rows


def _text(
    how: str, prompt: Sequence[int], ours: Sequence[int], theirs: Sequence[int], is_tie: bool
) -> TextResult:
    return TextResult(f"generate.{how}", len(prompt), tuple(ours), tuple(theirs), is_tie)


def prompts_of(tokens_BT: np.ndarray) -> list[list[int]]:
    """Prompts of unequal lengths, from the rows in turn and each from another place."""
    batch_size, length = tokens_BT.shape
    lengths = sorted({min(wanted, length) for wanted in LENGTHS})
    starts = [(7 * i) % (length - wanted + 1) for i, wanted in enumerate(lengths)]
    return [
        tokens_BT[i % batch_size, start : start + wanted].tolist()
        for i, (wanted, start) in enumerate(zip(lengths, starts, strict=True))
    ]


def _decode(reference: "PreTrainedModel", prompts: Sequence[list[int]]) -> Decoded:
    with prepared(reference, "eager"):
        chosen = [_continue(reference, prompt, 1) for prompt in prompts]
        beams = [_continue(reference, prompt, NUM_BEAMS)[0] for prompt in prompts]
    greedy = [tokens for tokens, _ in chosen]
    others = [_whole(reference, prompts, greedy, "eager")]
    for attention, otherwise in WAYS:
        with otherwise(reference):
            others.append(_whole(reference, prompts, greedy, attention))
    return Decoded(greedy, beams, np.stack([logits for _, logits in chosen]), others)


def _continue(
    reference: "PreTrainedModel", prompt: list[int], num_beams: int
) -> tuple[list[int], np.ndarray]:
    """A prompt's new tokens, and the logits that each was chosen by, NV."""
    import torch
    from transformers import GenerationConfig

    tokens = torch.tensor([prompt], device=reference.device)
    config = GenerationConfig(
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        num_beams=num_beams,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    # In place of what the checkpoint says of sampling, penalties and ends.
    with mock.patch.object(reference, "generation_config", config), torch.no_grad():
        # Without a mask, transformers would take every token 0 for padding.
        generate_text: Any = reference.generate
        out = generate_text(tokens, attention_mask=torch.ones_like(tokens))
    scores = torch.cat(out.scores).float().cpu().numpy()
    return out.sequences[0, len(prompt) :].tolist(), scores


def _whole(
    reference: "PreTrainedModel",
    prompts: Sequence[list[int]],
    continuations: Sequence[list[int]],
    attention: str,
) -> np.ndarray:
    """The logits of continuations in one pass over each and its prompt, without a cache: PNV."""
    import torch

    rows = []
    with prepared(reference, attention), torch.no_grad():
        for prompt, new in zip(prompts, continuations, strict=True):
            tokens = torch.tensor([[*prompt, *new[:-1]]], device=reference.device)
            logits = reference(tokens, use_cache=False).logits[0, len(prompt) - 1 :]
            rows.append(logits.float().cpu().numpy())
    return np.stack(rows)


def _forced(
    model: Decoder, prompts: Sequence[list[int]], continuations: Sequence[list[int]]
) -> np.ndarray:
    """Our logits of given continuations, token by token out of a cache: PNV."""
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    tokens = np.zeros((len(prompts), lengths.max()), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    graphdef, state = nnx.split(model)
    new = np.asarray(continuations, np.int32)
    return np.asarray(_steps(graphdef, nnx.to_pure_dict(state), tokens, lengths, new), np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _steps(
    graphdef: nnx.GraphDef,
    params: dict,
    tokens_PT: jax.Array,
    lengths_P: jax.Array,
    new_PN: jax.Array,
) -> jax.Array:
    model: Decoder = nnx.merge(graphdef, nnx.State(params))
    (P, T), N = tokens_PT.shape, new_PN.shape[1]
    positions_PT = jnp.arange(T)[None]
    positions_PT = jnp.where(positions_PT < lengths_P[:, None], positions_PT, -1)  # -1: padding
    empty = model.init_cache(P, T + N)
    x_PTD, cache, _ = model.hidden(tokens_PT, positions=positions_PT, cache=empty)

    def step(carry: tuple, i: jax.Array) -> tuple:
        x_PD, cache = carry
        logits_PV = model.unembed(x_PD[:, None])[:, 0]
        token_P1 = jax.lax.dynamic_slice_in_dim(new_PN, i, 1, axis=1)
        positions_P1 = (lengths_P + i)[:, None]
        x_P1D, cache, _ = model.hidden(token_P1, positions=positions_P1, cache=cache)
        return (x_P1D[:, 0], cache), logits_PV

    last_PD = x_PTD[jnp.arange(P), lengths_P - 1]
    logits_NPV: jax.Array = jax.lax.scan(step, (last_PD, cache), jnp.arange(N))[1]
    return logits_NPV.swapaxes(0, 1)


def _judge_logits(ours_PNV: np.ndarray, theirs: Decoded) -> ScoresResult:
    floor = max(metrics.relative_l2(other, theirs.logits_PNV) for other in theirs.others_PNV)
    error = metrics.relative_l2(ours_PNV, theirs.logits_PNV)
    return ScoresResult("generate.logits", error, floor, tolerance.threshold(floor))


def _judge_filtered(ours_PNV: np.ndarray, theirs: Decoded, noise: float) -> ScoresResult:
    """The logits that a token would be drawn from, after temperature, top-k and top-p."""
    V = ours_PNV.shape[-1]
    ours = np.asarray(SAMPLING.filtered(jnp.asarray(ours_PNV.reshape(-1, V))))
    raw = theirs.logits_PNV.reshape(-1, V)
    reference = _filtered(raw)
    apart = np.isfinite(ours) != np.isfinite(reference)
    unexplained = sum(
        not _is_filter_tie(raw[row], token, noise) for row, token in np.argwhere(apart)
    )
    both = np.isfinite(ours) & np.isfinite(reference)

    def error(other: np.ndarray) -> float:
        return metrics.relative_l2(other[both], reference[both])

    floor = max(error(other.reshape(-1, V) / SAMPLING.temperature) for other in theirs.others_PNV)
    threshold = tolerance.threshold(floor)
    return ScoresResult("generate.filtered", error(ours), floor, threshold, unexplained)


def _filtered(logits_BV: np.ndarray) -> np.ndarray:
    """What transformers makes of logits before it draws from them."""
    import torch
    from transformers import (
        LogitsProcessorList,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    assert SAMPLING.top_k is not None, "given above"
    assert SAMPLING.top_p is not None, "given above"
    filters = LogitsProcessorList(
        [
            TemperatureLogitsWarper(SAMPLING.temperature),
            TopKLogitsWarper(SAMPLING.top_k),
            TopPLogitsWarper(SAMPLING.top_p),
        ]
    )
    no_tokens: Any = torch.empty(0)
    return filters(no_tokens, torch.tensor(logits_BV)).numpy()


def _is_filter_tie(logits_V: np.ndarray, token: int, noise: float) -> bool:
    """Whether noise in its logit decides whether a token is filtered out."""
    rows = np.repeat(logits_V[None], 2, axis=0)
    rows[:, token] += np.array([-2 * noise, 2 * noise], rows.dtype)
    kept = np.isfinite(_filtered(rows)[:, token])
    return bool(kept[0] != kept[1])


def _is_greedy_tie(
    ours: Sequence[int], theirs: Sequence[int], logits_NV: np.ndarray, noise: float
) -> bool:
    """Whether the two part where the reference's likeliest tokens are within noise."""
    places = [place for place, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
    if not places:
        return False
    logits_V = logits_NV[places[0]]
    return bool(logits_V.max() - logits_V[ours[places[0]]] <= 2 * noise)


def _is_beam_tie(
    reference: "PreTrainedModel",
    prompt: list[int],
    ours: list[int],
    theirs: list[int],
    noise: float,
) -> bool:
    """Whether the reference deems both continuations as likely, within noise."""
    pair = _whole(reference, [prompt, prompt], [ours, theirs], "eager").astype(np.float64)
    totals = []
    logits_NV: np.ndarray
    for logits_NV, new in zip(pair, (ours, theirs), strict=True):
        log_sums = np.logaddexp.reduce(logits_NV, axis=-1)
        totals.append((logits_NV[np.arange(len(new)), new] - log_sums).sum())
    return abs(totals[0] - totals[1]) <= 2 * noise * len(ours)
