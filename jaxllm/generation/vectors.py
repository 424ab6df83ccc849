"""Generation of vectors: a model of continuous inputs continues sequences of them."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from jaxllm.errors import NonFiniteError, UserError
from jaxllm.layers.attention.cache import CacheDtype, with_nothing_written
from jaxllm.layers.context import Context
from jaxllm.models import Model, SequenceModel, SequenceToSequence
from jaxllm.sharding import to_host

from .prompts import bucket_size
from .weights import decoding_weights

VectorModel = SequenceModel | SequenceToSequence


def generate_vectors(
    model: Model,
    inputs: Sequence[ArrayLike],
    num_new: int,
    *,
    sources: Sequence[ArrayLike] | None = None,
    cache_dtype: CacheDtype | None = None,
) -> list[np.ndarray]:
    """Continues sequences of vectors: the output at the last one is the next input.

    Rows do not affect each other: a sequence gives the same vectors alone and in a batch.

    Args:
        model: causal, with outputs of the size of its inputs; the layers may be scanned or not.
        inputs: the vectors of each row, (T, I), of any lengths.
        num_new: vectors to return for each row.
        sources: for an encoder-decoder, what each row's encoder reads, (S, J). `inputs` then begin
            its target.
        cache_dtype: of keys and values, such as "int8". Default: that of the activations.

    Returns:
        The new vectors of each row, (num_new, I), in float32.

    Raises:
        UserError: the model cannot continue such sequences, or an argument is not valid.
        NonFiniteError: an output is NaN.
    """
    model = _check_model(model, sources)
    decoder = model.decoder if isinstance(model, SequenceToSequence) else model
    rows = _check_rows("inputs", inputs, decoder.config.input_dim)
    if num_new < 1:
        raise UserError(f"num_new={num_new} is less than 1")
    longest, last = decoder.config.longest, max(map(len, rows)) + num_new - 1
    if longest is not None and last > longest:
        raise UserError(f"{last} vectors exceed max_len={longest}, where the positions end")
    source = None
    if isinstance(model, SequenceToSequence) and sources is not None:
        given = _check_rows("sources", sources, model.config.source_dim)
        if len(given) != len(rows):
            raise UserError(f"sources has {len(given)} entries for {len(rows)} rows of inputs")
        limit = model.config.longest_source
        if limit is not None and max(map(len, given)) > limit:
            raise UserError(f"a source has more vectors than max_len={limit}")
        source = _pad(given, limit)
    x_BTI, lengths = _pad(rows, longest)
    graphdef, params = decoding_weights(model)
    program = graphdef, bucket_size(num_new), cache_dtype
    out = _generate(program, params, x_BTI, lengths, np.int32(num_new), source)
    found = to_host(out)[:, :num_new]
    if np.isnan(found).any():
        raise NonFiniteError("an output is NaN: a weight or an input is not finite")
    return list(found)


def _check_model(model: Model, sources: Sequence[ArrayLike] | None) -> VectorModel:
    """Returns the model. Raises UserError if its outputs cannot be its next inputs."""
    if not isinstance(model, VectorModel):
        raise UserError(f"a {type(model).__name__} has tokens: use `generate`")
    is_two = isinstance(model, SequenceToSequence)
    if is_two != (sources is not None):
        need = "needs `sources`" if is_two else "reads no `sources`"
        raise UserError(f"a {type(model).__name__} {need}")
    config = model.decoder.config if isinstance(model, SequenceToSequence) else model.config
    if config.pooled or not config.attention.causal:
        raise UserError(
            f"pooled={config.pooled}, attention.causal={config.attention.causal}: only a causal "
            "model with an output for each vector can continue sequences"
        )
    if config.input_dim != config.output_dim:
        raise UserError(
            f"output_dim={config.output_dim} is not input_dim={config.input_dim}: outputs cannot "
            "be the next inputs"
        )
    return model


def _check_rows(name: str, given: Sequence[ArrayLike], dim: int) -> list[np.ndarray]:
    """Returns arrays. Raises UserError unless each is at least one vector of this size."""
    rows = [np.asarray(row, np.float32) for row in given]
    if not rows:
        raise UserError(f"no {name} are given")
    for i, row in enumerate(rows):
        if row.ndim != 2 or row.shape[1] != dim or len(row) == 0:
            raise UserError(
                f"{name} {i} has shape {row.shape}; it must be (T, {dim}), with T at least 1"
            )
    return rows


def _pad(rows: list[np.ndarray], longest: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Pads rows on the right to a common length, at most `longest`; returns them, and lengths."""
    lengths = np.array([len(row) for row in rows], np.int32)
    size = bucket_size(int(lengths.max()))
    size = size if longest is None else min(size, longest)
    padded = np.zeros((len(rows), size, rows[0].shape[1]), np.float32)
    for to, row in zip(padded, rows, strict=True):
        to[: len(row)] = row
    return padded, lengths


@functools.partial(jax.jit, static_argnums=0)
def _generate(
    program: tuple[nnx.GraphDef, int, CacheDtype | None],
    params: dict,
    x_BTI: Array,
    lengths_B: Array,
    num_new: Array,
    given: tuple[Array, Array] | None,
) -> Array:
    """Returns the new vectors, BRI, of which the first `num_new` mean something.

    Sources are given as vectors, BSJ, and lengths, B.
    """
    graphdef, room, cache_dtype = program
    model: VectorModel = nnx.merge(graphdef, nnx.State(params))
    source, decoder = None, model
    if isinstance(model, SequenceToSequence):
        assert given is not None, "checked"
        source_BSJ, source_lengths_B = given
        is_given_BS = jnp.arange(source_BSJ.shape[1]) < source_lengths_B[:, None]
        source, _ = model.encode(source_BSJ, segment_ids=is_given_BS)
        decoder = model.decoder
    assert isinstance(decoder, SequenceModel), "of either kind of model"
    (B, T, _), rows = x_BTI.shape, jnp.arange(len(lengths_B))
    length = T + room if decoder.config.longest is None else min(T + room, decoder.config.longest)
    empty = decoder.init_cache(B, length, source, cache_dtype)
    positions_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
    positions_BT = jnp.where(positions_BT < lengths_B[:, None], positions_BT, -1)  # padding
    context = Context(positions_BT=positions_BT)
    x_BTD, cache, _ = decoder.hidden(x_BTI, context, with_nothing_written(empty))
    first_B1I = decoder.unembed(x_BTD[rows, lengths_B - 1][:, None])
    out_BRI = jnp.pad(first_B1I, ((0, 0), (0, room - 1), (0, 0)))

    def step(i: Array, carry: tuple) -> tuple:
        out_BRI, cache = carry
        last_B1I = jax.lax.dynamic_slice_in_dim(out_BRI, i - 1, 1, axis=1)
        context = Context(positions_BT=(lengths_B + i - 1)[:, None])
        x_B1D, cache, _ = decoder.hidden(last_B1I, context, cache)
        return out_BRI.at[:, i].set(decoder.unembed(x_B1D)[:, 0]), cache

    return jax.lax.fori_loop(1, num_new, step, (out_BRI, cache))[0]
