"""The decoding loop, which runs on the device: one compiled program serves all settings."""

import functools
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxllm.layers.attention.cache import CacheDtype, Caches
from jaxllm.layers.vision import MaskedEmbedding
from jaxllm.models import Decoder, EncoderDecoder, TokenModel

from .incremental import decode_step, prefill
from .scores.processors import EOS, STOP, Processor, Settings, Text, choose, process
from .weights import decoding_weights

# Why a row has ended, in `Progress.ended_B`.
RUNNING, AT_EOS, AT_STOP, AT_LIMIT, NOT_FINITE = range(5)
# XLA for GPUs would join the kernels of q, k and v at each token, and so move them three times.
IN_LOOPS = {"xla_gpu_dot_merger_threshold_mb": 0}
NO_TOKEN = -1  # in place of a token whose scores are NaN


class Progress(NamedTuple):
    """Rows in the middle of their generation."""

    text: Text
    x_BD: Array  # hidden state of each row's last token
    cache: Caches
    log_probs_BS: Array  # log-probability of each new token, before any processing
    ended_B: Array
    draft: "Drafting | None" = None  # with a draft model


class Drafting(NamedTuple):
    """The cache of a draft model, and how many of its tokens were proposed and accepted."""

    cache: Caches
    drafted_B: Array  # tokens proposed so far
    accepted_B: Array  # those of them that were taken


class Program(NamedTuple):
    """The settings that a decoding loop is compiled for, besides the shapes of its arrays."""

    graphdef: nnx.GraphDef
    processor: Processor | None = None  # the user's own
    cache_dtype: CacheDtype | None = None

    @classmethod
    def of(
        cls,
        model: TokenModel,
        processor: Processor | None = None,
        cache_dtype: CacheDtype | None = None,
    ) -> tuple[Self, dict]:
        """Returns the program of a model, and its weights."""
        graphdef, params = decoding_weights(model)
        return cls(graphdef, processor, cache_dtype), params

    def model(self, params: dict) -> TokenModel:
        """Returns the model with these weights."""
        return nnx.merge(self.graphdef, nnx.State(params))

    def scores(self, logits_BV: Array, text: Text, settings: Settings) -> Array:
        """Returns the scores of the next token, BV, by all processors."""
        scores_BV = process(logits_BV, text, settings)
        return scores_BV if self.processor is None else self.processor(scores_BV, text)


@functools.partial(jax.jit, static_argnums=0)
def embed_images(
    program: Program, params: dict, images_ICHW: Array, tokens_BT: Array
) -> MaskedEmbedding:
    """Embeds images in place of the image tokens, in order, row by row."""
    model = program.model(params)
    assert isinstance(model, Decoder), "checked with the images"
    return model.embed_images(images_ICHW, tokens_BT)


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=IN_LOOPS)
def begin(
    program: Program,
    room: int,
    params: dict,
    tokens_BT: Array,
    lengths_B: Array,
    settings: Settings,
    steps: Array,
    image: MaskedEmbedding | None = None,
) -> Progress:
    """Reads the prompts and generates up to `steps` tokens, of the `room` that there is for each.

    Rows without a token to generate, whose limit is 0, have ended.
    """
    model, dtype = program.model(params), program.cache_dtype
    start = prefill(model, tokens_BT, lengths_B, room, dtype, image=image)
    text = start.text(jnp.zeros((len(lengths_B), room), jnp.int32), jnp.int32(0))
    ended_B = jnp.where(settings.limit_B > 0, RUNNING, AT_LIMIT).astype(jnp.int32)
    no_probs_BS = jnp.zeros(text.tokens_BS.shape)
    progress = Progress(text, start.x_BD, start.cache, no_probs_BS, ended_B)
    return _loop(program, start.model, progress, settings, steps)


@functools.partial(jax.jit, static_argnums=0, donate_argnames="progress", compiler_options=IN_LOOPS)
def advance(
    program: Program, params: dict, progress: Progress, settings: Settings, steps: Array
) -> Progress:
    """Generates up to `steps` more tokens of each row that has not ended."""
    model = program.model(params)
    decoder = model.decoder if isinstance(model, EncoderDecoder) else model
    return _loop(program, decoder, progress, settings, steps)


def _loop(
    program: Program, model: Decoder, progress: Progress, settings: Settings, steps: Array
) -> Progress:

    def is_running(carry: tuple[Array, Progress]) -> Array:
        i, progress = carry
        return (i < steps) & (progress.ended_B == RUNNING).any()

    def step(carry: tuple[Array, Progress]) -> tuple[Array, Progress]:
        i, progress = carry
        progress = _add_token(program, model, progress, settings)
        # After the last token, this step is of no use; a condition would copy the cache each time.
        is_running_B = progress.ended_B == RUNNING
        x_BD, cache = decode_step(model, progress.cache, progress.text, is_running_B)
        return i + 1, progress._replace(x_BD=x_BD, cache=cache)

    return jax.lax.while_loop(is_running, step, (jnp.int32(0), progress))[1]


def _add_token(
    program: Program, model: Decoder, progress: Progress, settings: Settings
) -> Progress:
    """Chooses the next token of each row that has not ended, and adds it."""
    text = progress.text
    logits_BV = model.unembed(progress.x_BD[:, None])[:, 0]
    scores_BV = program.scores(logits_BV, text, settings)
    token_B = choose(scores_BV, settings, text.lengths_B - text.starts_B)
    token_B = jnp.where(jnp.isnan(scores_BV).any(-1), NO_TOKEN, token_B)
    return add_token(progress, token_B, logits_BV, settings, progress.ended_B == RUNNING)


def add_token(
    progress: Progress, token_B: Array, logits_BV: Array, settings: Settings, is_adding_B: Array
) -> Progress:
    """Adds a token to some rows, and ends those whose last one it is.

    Args:
        progress: the rows so far.
        token_B: the token of each row, NO_TOKEN if its scores are NaN.
        logits_BV: from which it was chosen, before any processing.
        settings: of each row.
        is_adding_B: the rows to change.
    """
    text, log_probs_BS = progress.text, progress.log_probs_BS
    new_B, rows = text.lengths_B - text.starts_B, jnp.arange(len(token_B))
    is_nan_B, token_B = token_B == NO_TOKEN, jnp.maximum(token_B, 0)
    log_prob_B = logits_BV[rows, token_B] - jax.nn.logsumexp(logits_BV, axis=-1)

    places = rows, jnp.where(is_adding_B, text.lengths_B, text.tokens_BS.shape[1])  # dropped
    sets_B = settings.sets_BV[rows, token_B]
    reason_B = jnp.where(new_B + 1 >= settings.limit_B, AT_LIMIT, RUNNING)
    for bit, reason in ((STOP, AT_STOP), (EOS, AT_EOS)):
        reason_B = jnp.where((sets_B & jnp.uint8(bit)) != 0, reason, reason_B)
    reason_B = jnp.where(is_nan_B, NOT_FINITE, reason_B)
    return progress._replace(
        text=Text(
            text.tokens_BS.at[places].set(token_B),
            text.lengths_B + is_adding_B,
            text.starts_B,
        ),
        log_probs_BS=log_probs_BS.at[places].set(log_prob_B),
        ended_B=jnp.where(is_adding_B, reason_B, progress.ended_B).astype(jnp.int32),
    )
