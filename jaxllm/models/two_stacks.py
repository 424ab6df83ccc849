"""What models of an encoder and a decoder have in common (Vaswani et al., 2017)."""

from typing import Self

import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxllm.config import TwoStackConfig, with_fields
from jaxllm.layers.attention.cache import Caches
from jaxllm.layers.context import Context, Source
from jaxllm.layers.dropout import subkeys

from .decoder import Decoder
from .output import Output
from .sequence import SequenceModel
from .stack import Stack


class TwoStacks(nnx.Module):
    """A decoder that attends to what an encoder returns, whatever their tokens are."""

    config: TwoStackConfig
    encoder: Stack
    decoder: Decoder | SequenceModel

    def embed_source(self, src_BS: Array) -> Array:
        """The encoder's input, BSD."""
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
        """The logits that predict the successor of each token of the target.

        Args:
            src_BS: tokens of the source: ids, or vectors.
            tgt_BT: tokens of the target; ids start with `config.start_token`.
            src_segment_ids: BS; tokens attend within equal ids only, and those of the target to
                those of the source with their own. 0 is padding; by default all are 1.
            segment_ids: BT, of the target.
            dropout_key: of `jax.random.key`, another for each step of training. By default
                nothing is dropped out.
        """
        x_BTD, loss = self.hidden(
            src_BS,
            tgt_BT,
            src_segment_ids=src_segment_ids,
            segment_ids=segment_ids,
            dropout_key=dropout_key,
        )
        return Output(self.decoder.unembed(x_BTD), None, loss)

    def hidden(
        self,
        src_BS: Array,
        tgt_BT: Array,
        *,
        src_segment_ids: Array | None = None,
        segment_ids: Array | None = None,
        dropout_key: Array | None = None,
    ) -> tuple[Array, Array]:
        """The decoder's last hidden state, BTD, and the auxiliary loss, of a call's arguments."""
        src_key, tgt_key = subkeys(dropout_key, 2)
        source, encoder_loss = self.encode(src_BS, segment_ids=src_segment_ids, dropout_key=src_key)
        context = Context(segment_ids, source=source, dropout_key=tgt_key)
        x_BTD, _, loss = self.decoder.hidden(tgt_BT, context)
        return x_BTD, encoder_loss + loss

    def encode(
        self,
        src_BS: Array,
        *,
        segment_ids: Array | None = None,
        dropout_key: Array | None = None,
    ) -> tuple[Source, Array]:
        """What the decoder attends to, and the encoder's auxiliary loss."""
        context = Context(segment_ids, dropout_key=dropout_key)
        x_BSD, _, loss = self.encoder.transform(self.embed_source(src_BS), context)
        if segment_ids is None:
            segment_ids = jnp.ones(x_BSD.shape[:2], jnp.int32)
        return Source(x_BSD, jnp.asarray(segment_ids, jnp.int32)), loss

    def decode(
        self,
        tgt_BT: Array,
        source: Source | None = None,
        *,
        segment_ids: Array | None = None,
        positions: Array | None = None,
        cache: Caches | None = None,
    ) -> Output:
        """The logits of a target, given the source, or a cache with its keys and values.

        Args:
            tgt_BT: tokens: ids, or vectors.
            source: of `encode`. Not needed with a cache.
            segment_ids: BT, as in a call of the model. Not for use with a cache.
            positions: BT. Default: 0, 1, 2, ...
            cache: of `init_cache`, or as the last call returned it.
        """
        context = Context(segment_ids, positions, source)
        x_BTD, cache, loss = self.decoder.hidden(tgt_BT, context, cache)
        return Output(self.decoder.unembed(x_BTD), cache, loss)

    def init_cache(self, source: Source, length: int) -> Caches:
        """A cache with room for a target of `length` tokens, and with what layers keep of `source`.

        The keys and values of the source are computed here, once for all tokens of the target.
        """
        return self.decoder.init_cache(source.x_BSD.shape[0], length, source)

    def restacked(self, scan: bool) -> Self:
        """The same model, same weights, with its layers stacked for a scan or one by one."""
        encoder, decoder = self.encoder.restacked(scan), self.decoder.restacked(scan)
        if encoder is self.encoder and decoder is self.decoder:
            return self
        changed = nnx.merge(*nnx.split(self))
        changed.config = with_fields(self.config, scan_layers=scan)
        changed.encoder, changed.decoder = encoder, decoder
        return changed
