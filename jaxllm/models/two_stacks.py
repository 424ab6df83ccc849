"""Base class of models with an encoder and a decoder (Vaswani et al., 2017)."""

from typing import Self

import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxllm.config import TwoStackConfig, with_fields
from jaxllm.layers.attention.cache import Caches
from jaxllm.layers.context import Context, Source
from jaxllm.layers.dropout import subkeys
from jaxllm.layers.experts.balance import Balance

from .decoder import Decoder
from .output import Output
from .sequence import SequenceModel
from .stack import Stack


class TwoStacks(nnx.Module):
    """An encoder and a decoder that attends to its output; tokens are ids or vectors."""

    config: TwoStackConfig
    encoder: Stack
    decoder: Decoder | SequenceModel

    def embed_source(self, src_BS: Array) -> Array:
        """Returns the encoder's input, BSD."""
        raise NotImplementedError

    def __call__(
        self,
        src_BS: Array,
        tgt_BT: Array,
        *,
        src_segment_ids: Array | None = None,
        segment_ids: Array | None = None,
        dropout_key: Array | None = None,
    ) -> Output:
        """Computes the logits that predict the next token of the target.

        Args:
            src_BS: source tokens: ids BS or vectors BSI.
            tgt_BT: target tokens: ids BT, which begin with `config.start_token`, or vectors BTI.
            src_segment_ids: BS; tokens attend only to source tokens with the same id, in the
                encoder and in cross-attention. 0 is padding. Default: all 1.
            segment_ids: BT, the segments of the target. Default: all 1.
            dropout_key: a `jax.random.key`, a new one for each training step. Default: no dropout.

        Returns:
            Output with logits for each token of the target: BTV, or BTO for vectors.
        """
        x_BTD, balance = self.hidden(
            src_BS,
            tgt_BT,
            src_segment_ids=src_segment_ids,
            segment_ids=segment_ids,
            dropout_key=dropout_key,
        )
        return Output(self.decoder.unembed(x_BTD), None, balance.aux_loss)

    def hidden(
        self,
        src_BS: Array,
        tgt_BT: Array,
        *,
        src_segment_ids: Array | None = None,
        segment_ids: Array | None = None,
        dropout_key: Array | None = None,
    ) -> tuple[Array, Balance]:
        """Returns the decoder's last hidden states, BTD, and the balance of both stacks' experts.

        The arguments are those of `__call__`.
        """
        src_key, tgt_key = subkeys(dropout_key, 2)
        source, first = self.encode(src_BS, segment_ids=src_segment_ids, dropout_key=src_key)
        context = Context(segment_ids, source=source, dropout_key=tgt_key)
        x_BTD, _, balance = self.decoder.hidden(tgt_BT, context)
        return x_BTD, first.joined_with(balance)

    def encode(
        self,
        src_BS: Array,
        *,
        segment_ids: Array | None = None,
        dropout_key: Array | None = None,
    ) -> tuple[Source, Balance]:
        """Runs the encoder: returns the source for the decoder and the balance of its experts."""
        context = Context(segment_ids, dropout_key=dropout_key)
        x_BSD, _, balance = self.encoder.transform(self.embed_source(src_BS), context)
        if segment_ids is None:
            segment_ids = jnp.ones(x_BSD.shape[:2], jnp.int32)
        return Source(x_BSD, jnp.asarray(segment_ids, jnp.int32)), balance

    def decode(
        self,
        tgt_BT: Array,
        source: Source | None = None,
        *,
        segment_ids: Array | None = None,
        positions: Array | None = None,
        cache: Caches | None = None,
    ) -> Output:
        """Runs the decoder on a target, with a source or with a cache that holds one.

        Args:
            tgt_BT: target tokens: ids BT, or vectors BTI.
            source: from `encode`. Not needed with a cache.
            segment_ids: BT, as for `__call__`. Cannot be combined with a cache.
            positions: BT. Default: 0, 1, 2, ...
            cache: from `init_cache` or the previous call.
        """
        context = Context(segment_ids, positions, source)
        x_BTD, cache, balance = self.decoder.hidden(tgt_BT, context, cache)
        return Output(self.decoder.unembed(x_BTD), cache, balance.aux_loss)

    def init_cache(self, source: Source, length: int) -> Caches:
        """Returns a cache for targets of up to `length` tokens, with the source's keys and values.

        The keys and values of the source are computed here, once for all tokens of the target.
        """
        return self.decoder.init_cache(source.x_BSD.shape[0], length, source)

    def restacked(self, scan: bool) -> Self:
        """Returns the same model and weights, with layers stacked for a scan or kept one by one."""
        encoder, decoder = self.encoder.restacked(scan), self.decoder.restacked(scan)
        if encoder is self.encoder and decoder is self.decoder:
            return self
        changed = nnx.merge(*nnx.split(self))
        changed.config = with_fields(self.config, scan_layers=scan)
        changed.encoder, changed.decoder = encoder, decoder
        return changed
