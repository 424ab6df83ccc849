"""Cached generation: one pass over the prompts, then a decoding loop that runs on the device."""

import functools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxllm.config import EncoderDecoderConfig, check_has_head
from jaxllm.config.checks import check_seed, show
from jaxllm.errors import NonFiniteError, UserError
from jaxllm.models import Decoder, Model, TokenModel, with_scanned_layers
from jaxllm.models.stack import check_positions
from jaxllm.sharding import to_host

from .incremental import decode_step, prefill
from .rules import TokenRules, Written
from .sampling import Sampling

GREEDY = Sampling()
NO_RULES = TokenRules()
EXPECTED = "give a list of prompts, each a list of token ids, as in [[1, 2], [3]]"
NOT_FINITE = -1  # in place of a token where the logits are NaN
MAX_TOKENS = 2**30  # places in the cache are int32, and their number is rounded up


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    sampling: Sampling = GREEDY,
    rules: TokenRules = NO_RULES,
    eos_ids: Sequence[int] = (),
    seed: int = 0,
) -> list[list[int]]:
    """Continues each prompt, greedily or by sampling.

    An encoder-decoder reads the prompt as its source and generates the target.

    Rows do not affect each other: a prompt gives the same tokens alone and in a batch. A sampled
    row also depends on `seed` and on its index in the batch, and on nothing else.

    Args:
        model: scanned layers are unstacked first. To generate often, unstack them once with
            `with_scanned_layers(model, False)`.
        prompts: a list of prompts, each a list of token ids, of any lengths. A text must be
            encoded first.
        max_new_tokens: maximum number of tokens to return for a prompt.
        sampling: how the next token is chosen; greedy by default.
        rules: tokens that are forced or suppressed.
        eos_ids: end-of-sequence tokens.
        seed: seed of the random numbers.

    Returns:
        The new tokens of each prompt, up to and including the first end-of-sequence token. A
        target is returned without the `config.start_token` that it begins with.

    Raises:
        UserError: `prompts` is not a list of lists of token ids, no prompts, an empty prompt, an
            unknown token, fewer than one new token, an encoder-decoder without
            `config.start_token`, more tokens than the model has positions for, a seed that is not
            in [0, 2**32), or a model without tokens.
        NonFiniteError: logits are NaN, so that no token can be chosen.
    """
    model = check_token_model(model)
    check_seed(seed)
    check_prompts(model, prompts, max_new_tokens)
    rules.check(model.config.vocab_size)
    tokens, lengths = pad_prompts(prompts)
    graphdef, state = nnx.split(with_scanned_layers(model, False))
    out = _decode(
        graphdef,
        (sampling, rules),
        bucket_size(max_new_tokens),
        nnx.to_pure_dict(state),
        tokens,
        lengths,
        np.int32(max_new_tokens),
        np.array(sorted(eos_ids), np.int32),
        jax.random.key(seed),
    )
    out_BR = to_host(out)[:, :max_new_tokens]
    return cut_rows(out_BR, (out_BR != NOT_FINITE).all(1), set(eos_ids))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _decode(
    graphdef: nnx.GraphDef,
    settings: tuple[Sampling, TokenRules],
    room: int,
    params: dict,
    tokens_BT: Array,
    lengths_B: Array,
    limit: Array,
    eos_ids: Array,
    key: Array,
) -> Array:
    """Returns the new tokens in an array of shape (B, room); the first `limit` are valid."""
    (sampling, rules), B = settings, tokens_BT.shape[0]
    rows = jnp.arange(B)
    whole: TokenModel = nnx.merge(graphdef, nnx.State(params))
    start = prefill(whole, tokens_BT, lengths_B, room)

    def choose(
        x_BD: Array, i: Array, seen_BV: Array | None, out_BR: Array
    ) -> tuple[Array, Array | None]:
        """Returns the next token of each row, and the mask of seen tokens with it added."""
        keys_B = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(key, row), i))(rows)
        logits_BV = start.model.unembed(x_BD[:, None])[:, 0]
        written = Written(start.tokens_BT, start.lengths_B, out_BR, i)
        logits_BV = rules(logits_BV, written, limit=limit, eos_ids=eos_ids)
        token_B = sampling(logits_BV, keys_B, seen_BV)
        token_B = jnp.where(jnp.isnan(logits_BV).any(-1), NOT_FINITE, token_B)
        return token_B, None if seen_BV is None else seen_BV.at[rows, token_B].set(True)

    seen_BV = start.seen_tokens() if sampling.repetition_penalty != 1 else None
    out_BR = jnp.zeros((B, room), jnp.int32)
    first_B, seen_BV = choose(start.x_BD, jnp.int32(0), seen_BV, out_BR)
    out_BR = out_BR.at[:, 0].set(first_B)

    def is_running(carry: tuple) -> Array:
        i, is_done_B, *_ = carry
        return (i < limit) & ~is_done_B.all()

    def step(carry: tuple) -> tuple:
        i, is_done_B, cache, seen_BV, out_BR = carry
        x_BD, cache = decode_step(start, cache, out_BR, i - 1)
        token_B, seen_BV = choose(x_BD, i, seen_BV, out_BR)
        is_done_B |= jnp.isin(token_B, eos_ids)
        return i + 1, is_done_B, cache, seen_BV, out_BR.at[:, i].set(token_B)

    carry = (jnp.int32(1), jnp.isin(first_B, eos_ids), start.cache, seen_BV, out_BR)
    return jax.lax.while_loop(is_running, step, carry)[-1]


def pad_prompts(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Pads prompts on the right to a common length; returns tokens, BT, and lengths, B."""
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    tokens = np.zeros((len(prompts), bucket_size(int(lengths.max()))), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    return tokens, lengths


def bucket_size(size: int) -> int:
    """Returns the next power of two, at least 16, so that few array sizes need compiling."""
    return max(16, 1 << (int(size) - 1).bit_length())


def cut_rows(tokens_BR: np.ndarray, is_finite_B: np.ndarray, eos_ids: set[int]) -> list[list[int]]:
    """Returns each row's tokens up to and including its first end-of-sequence token.

    Raises NonFiniteError if the logits of a row were NaN.
    """
    if not is_finite_B.all():
        raise NonFiniteError(
            f"the logits after prompt {int(np.argmin(is_finite_B))} are NaN, so no token can be "
            "chosen: a weight is not finite (`jaxllm verify` counts these), or activations "
            "overflow, as they may in float16"
        )
    return [_cut_at_end(row.tolist(), eos_ids) for row in tokens_BR]


def _cut_at_end(tokens: list[int], eos_ids: set[int]) -> list[int]:
    ends = (place + 1 for place, token in enumerate(tokens) if token in eos_ids)
    return tokens[: next(ends, len(tokens))]


def check_token_model(model: Model) -> TokenModel:
    """Returns the model. Raises UserError if it has no vocabulary, or no head to choose from it."""
    if not isinstance(model, TokenModel):
        raise UserError(
            f"a {type(model).__name__} has no vocabulary to generate from: call the model with "
            "vectors instead"
        )
    check_has_head(model.config, "generate")
    return model


def check_prompts(model: TokenModel, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Raises UserError if the model cannot generate `max_new_tokens` from these prompts."""
    if not _is_whole_number(max_new_tokens):
        raise UserError(f"max_new_tokens={show(max_new_tokens)} is not a whole number")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} is less than 1")
    if max_new_tokens > MAX_TOKENS:
        raise UserError(f"max_new_tokens={max_new_tokens} is more than {MAX_TOKENS}")
    _check_are_token_ids(prompts)
    vocab_size = _prompt_vocab_size(model)
    for i, prompt in enumerate(prompts):
        if unknown := [token for token in prompt if not 0 <= token < vocab_size]:
            raise UserError(f"prompt {i} has token {unknown[0]}, but vocab_size={vocab_size}")
    _check_length(model, max(map(len, prompts)), max_new_tokens)


def _check_are_token_ids(prompts: Sequence[Sequence[int]]) -> None:
    """Raises UserError unless there are prompts and each is a list of at least one token id."""
    if not _is_list(prompts):
        raise UserError(f"prompts={show(prompts)}: {EXPECTED}")
    if len(prompts) == 0:
        raise UserError(f"no prompts are given: {EXPECTED}")
    for i, prompt in enumerate(prompts):
        if not _is_list(prompt):
            raise UserError(f"prompt {i} is {show(prompt)}: {EXPECTED}")
        if len(prompt) == 0:
            raise UserError(f"prompt {i} is empty: there is nothing to continue")
        if wrong := [token for token in prompt if not _is_whole_number(token)]:
            raise UserError(f"prompt {i} has {show(wrong[0])}, which is no token id: {EXPECTED}")


def _is_list(given: object) -> bool:
    """Whether this is a sequence other than a text, or an array with a first dimension."""
    is_array = getattr(given, "ndim", 0) > 0
    return is_array or (isinstance(given, Sequence) and not isinstance(given, str | bytes))


def _is_whole_number(given: object) -> bool:
    """Whether this is an int, or an integer scalar of NumPy, JAX or PyTorch."""
    if isinstance(given, bool) or not hasattr(given, "__index__"):
        return False
    try:
        operator.index(given)
    except TypeError:  # an array, or a scalar of another dtype
        return False
    return True


def _check_length(model: TokenModel, longest_prompt: int, max_new_tokens: int) -> None:
    """Raises UserError if the tokens exceed the model's positions."""
    config = model.config
    if isinstance(config, EncoderDecoderConfig):
        limit = config.longest_source
        if limit is not None and longest_prompt > limit:
            raise UserError(
                f"a prompt of {longest_prompt} tokens is longer than max_len={limit}, where the "
                "positions of the source end"
            )
        check_positions(longest_prompt, config.encoder)
        config, longest_prompt = config.decoder, 1  # the target begins with the start token
    # The last new token is not fed back, so it needs no position.
    last = longest_prompt + max_new_tokens - 1
    if config.longest is not None and last > config.longest:
        raise UserError(
            f"{longest_prompt} tokens and max_new_tokens={max_new_tokens} exceed "
            f"max_len={config.longest}, where the model's positions end"
        )
    check_positions(last, config)  # warns


def _prompt_vocab_size(model: TokenModel) -> int:
    if isinstance(model, Decoder):
        return model.config.vocab_size
    if model.config.start_token is None:
        raise UserError(
            "config.start_token=None: generation needs the token that a target begins with"
        )
    return model.config.source_vocab_size or model.config.decoder.vocab_size
