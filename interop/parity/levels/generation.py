"""Generation level: compares greedy and beam search with a KV cache, and the logits behind them."""

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
from jaxllm.generation.scores.settings import filter_logits
from jaxllm.interop.parity.alignment.adapters import adapter_of
from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.execution.distances import Distances
from jaxllm.interop.parity.execution.jax_trace import PRECISION
from jaxllm.interop.parity.execution.torch_decode import (
    ALL,
    KEPT,
    NEW_TOKENS,
    NUM_BEAMS,
    SAMPLING,
    ReferenceGeneration,
    ReferenceGenerator,
)
from jaxllm.interop.parity.progress import announce
from jaxllm.interop.parity.recording.plain import plain
from jaxllm.interop.parity.report.rows import ScoresResult, TextResult
from jaxllm.models import EncoderDecoder, TokenModel
from jaxllm.numerics.distance import difference, norm
from jaxllm.sharding import to_host

from .generation_vectors import Continued, compare_vectors, continue_vectors, judge_vectors
from .level import Stage
from .sides import Comparison, JaxSide

# Lengths of the prompts, if the inputs are long enough. Windows and chunks end within some of them.
LENGTHS = (1, 9, 34, 97)
# Returns the reference's logits, PNV, for prompts and given continuations.
Predict = Callable[[Sequence[list[int]], Sequence[Sequence[int]]], np.ndarray]
START_TOKEN = 1  # first token of targets, if the config has none


def compare_generation(comparison: Comparison) -> Sequence[TextResult | ScoresResult]:
    """Compares the continuations of prompts of several lengths, which are cut from the inputs.

    For an encoder-decoder the prompts are sources, and the generated tokens are targets.
    """
    if not isinstance(comparison.model, TokenModel):
        return compare_vectors(comparison)
    generator, theirs = decode_reference(comparison, comparison.model)
    return judge_generation(comparison.model, theirs, generator.logits)


def record_generation(comparison: Comparison) -> dict[str, Any]:
    """Records the reference's continuations for a pack."""
    if not isinstance(comparison.model, TokenModel):
        continued = continue_vectors(comparison.reference, comparison.inputs)
        return {**plain(continued), "distances": continued.distances.to_pack()}
    theirs = decode_reference(comparison, comparison.model)[1]
    return {**plain(theirs), "distances": theirs.distances.to_pack()}


def check_generation(
    recorded: Mapping[str, Any], ours: JaxSide
) -> Sequence[TextResult | ScoresResult]:
    """Compares the model's continuations with recorded ones."""
    model = ours.model
    if not isinstance(model, TokenModel):
        prompt = Inputs.from_arrays(recorded["prompt"])
        distances = Distances.from_pack(recorded["distances"])
        given = {**recorded, "prompt": prompt, "distances": distances}
        return judge_vectors(model, Continued(**given))
    ties = frozenset((row, token) for row, token in recorded["ties"])

    def predict(prompts: Sequence[list[int]], new: Sequence[Sequence[int]]) -> np.ndarray:
        # The reference is not there to ask. The rows on logits show that the model's are the same.
        with jax.default_matmul_precision(PRECISION):
            return forced_logits(model, prompts, new)

    given = {**recorded, "ties": ties, "distances": Distances.from_pack(recorded["distances"])}
    return judge_generation(model, ReferenceGeneration(**given), predict, is_reference=False)


def decode_reference(
    comparison: Comparison, model: TokenModel
) -> tuple[ReferenceGenerator, ReferenceGeneration]:
    """Cuts prompts from the inputs and has the reference continue them."""
    reference = comparison.reference
    unused = adapter_of(reference).padding_token(reference)
    prompts = prompts_of(comparison.inputs.replace_token(unused, model))
    generator = ReferenceGenerator(reference, _starting(model)[1])
    run = functools.partial(generator.decode, prompts, comparison.draws)
    return generator, comparison.of_reference(run, "generation", prompts, generator.start_token)


def judge_generation(
    model: TokenModel,
    theirs: ReferenceGeneration,
    predict: Predict,
    *,
    is_reference: bool = True,
) -> list[TextResult | ScoresResult]:
    """Continues the reference's prompts with the JAX model and compares the continuations.

    Args:
        model: the JAX model.
        theirs: the continuations of the reference.
        predict: returns the reference's logits for given continuations, PNV. Where beams diverge,
            they decide whether that is a tie; where greedy texts do, whether the reference would
            have continued ours as we did.
        is_reference: whether `predict` runs the reference; else what follows a tie is unknown.
    """
    prompts = theirs.prompts
    started, _ = _starting(model)
    announce("generation: model")
    with jax.default_matmul_precision(PRECISION):
        logits_PNV = forced_logits(started, prompts, theirs.greedy)
        greedy = generate(started, prompts, NEW_TOKENS)
        beams = beam_search(started, prompts, NEW_TOKENS, num_beams=NUM_BEAMS)
    rows: list[TextResult | ScoresResult] = [_judge_logits(logits_PNV, theirs)]
    rows.append(_judge_filtered(logits_PNV, theirs))
    for i, prompt in enumerate(prompts):
        one, other = greedy[i], theirs.greedy[i]
        is_tie = is_greedy_tie(one, other, theirs.logits_PNV[i], theirs.noise)
        is_confirmed = is_tie and is_reference
        if is_confirmed:  # a later token that the reference would not choose is a mistake
            is_tie = are_best(one, predict([prompt], [one])[0], theirs.noise)
        rows.append(_text("greedy", prompt, one, other, is_tie, is_tie and is_confirmed))
    for prompt, one, other in zip(prompts, beams, theirs.beams, strict=True):
        is_tie = one != other and _is_beam_tie(predict, prompt, one, other, theirs.noise)
        rows.append(_text("beams", prompt, one, other, is_tie))
    return rows


def _starting(model: TokenModel) -> tuple[TokenModel, int | None]:
    """Returns the model, with a start token set if it needs one, and the start token or None."""
    if not isinstance(model, EncoderDecoder):
        return model, None
    if model.config.start_token is None:
        model = nnx.merge(*nnx.split(model))
        model.config = dataclasses.replace(model.config, start_token=START_TOKEN)
    return model, model.config.start_token


def _text(
    how: str,
    prompt: Sequence[int],
    ours: Sequence[int],
    theirs: Sequence[int],
    is_tie: bool,
    is_confirmed: bool = False,
) -> TextResult:
    both = tuple(ours), tuple(theirs)
    return TextResult(f"generate.{how}", len(prompt), *both, is_tie, is_confirmed)


def prompts_of(inputs: Inputs) -> list[list[int]]:
    """Cuts prompts of different lengths from the inputs, from alternating rows and positions."""
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
    """Returns the model's logits of given continuations, PNV, token by token with a KV cache."""
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    tokens = np.zeros((len(prompts), lengths.max()), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    graphdef, state = nnx.split(model)
    new = np.asarray(continuations, np.int32)
    logits_PNV = _teacher_forced(graphdef, nnx.to_pure_dict(state), tokens, lengths, new)
    return to_host(logits_PNV).astype(np.float32, copy=False)


@functools.partial(jax.jit, static_argnums=0)
def _teacher_forced(
    graphdef: nnx.GraphDef,
    params: dict,
    tokens_PT: jax.Array,
    lengths_P: jax.Array,
    new_PN: jax.Array,
) -> jax.Array:
    whole: TokenModel = nnx.merge(graphdef, nnx.State(params))
    start = prefill(whole, tokens_PT, lengths_P, new_PN.shape[1])

    def predict_next(carry: tuple, i: jax.Array) -> tuple:
        x_PD, cache = carry
        logits_PV = start.model.unembed(x_PD[:, None])[:, 0]
        return decode_step(start.model, cache, start.text(new_PN, i + 1)), logits_PV

    places = jnp.arange(new_PN.shape[1])
    logits_NPV: jax.Array = jax.lax.scan(predict_next, (start.x_BD, start.cache), places)[1]
    return logits_NPV.swapaxes(0, 1)


def _judge_logits(ours_PNV: np.ndarray, theirs: ReferenceGeneration) -> ScoresResult:
    departure_PNV, size = difference(ours_PNV, theirs.logits_PNV), norm(theirs.logits_PNV)
    error = theirs.distances.judge(ALL, departure_PNV, size)
    return ScoresResult("generate.logits", error)


def _judge_filtered(ours_PNV: np.ndarray, theirs: ReferenceGeneration) -> ScoresResult:
    """Compares the logits after temperature, top-k and top-p, and which tokens are left."""
    V = ours_PNV.shape[-1]
    ours = np.asarray(filter_logits(SAMPLING, jnp.asarray(ours_PNV.reshape(-1, V))))
    kept, reference = theirs.kept_PNV.reshape(-1, V), theirs.logits_PNV.reshape(-1, V)
    apart = {(int(row), int(token)) for row, token in np.argwhere(np.isfinite(ours) != kept)}
    unscaled = np.where(np.isfinite(ours), ours * np.float32(SAMPLING.temperature), reference)
    departure, size = difference(unscaled[kept], reference[kept]), norm(reference[kept])
    error = theirs.distances.judge(KEPT, departure, size)
    return ScoresResult("generate.filtered", error, len(apart - theirs.ties))


def is_greedy_tie(
    ours: Sequence[int], theirs: Sequence[int], logits_NV: np.ndarray, noise: float
) -> bool:
    """Whether the two diverge where the reference's top tokens are within noise of each other."""
    places = [place for place, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
    if not places:
        return False
    logits_V = logits_NV[places[0]]
    return bool(logits_V.max() - logits_V[ours[places[0]]] <= 2 * noise)


def are_best(tokens: Sequence[int], logits_NV: np.ndarray, noise: float) -> bool:
    """Whether each token has the largest of the logits at its place, within noise."""
    chosen_N = logits_NV[np.arange(len(tokens)), list(tokens)]
    return bool((logits_NV.max(-1) - chosen_N <= 2 * noise).all())


def _is_beam_tie(
    predict: Predict, prompt: list[int], ours: list[int], theirs: list[int], noise: float
) -> bool:
    """Whether both continuations are equally likely in the reference, within noise."""
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
    runs=lambda levels, draws: 3 + draws,
)
