"""One transformer layer, and a stack of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxllm.config import DecoderConfig, Remat
from jaxllm.layers.attention import Attention
from jaxllm.layers.cache import Caches, KVCache
from jaxllm.layers.linear import PROJECTION
from jaxllm.layers.mlp import MLP
from jaxllm.layers.norm import RMSNorm
from jaxllm.sharding import constrain


class Block(nnx.Module):
    """Pre-norm residual block: `x += attn(norm(x)); x += mlp(norm(x))`."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.attn_norm = RMSNorm(config)
        self.attn = Attention(config, rngs=rngs)
        self.mlp_norm = RMSNorm(config)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(
        self,
        x_BTD: Array,
        positions_BT: Array,
        segment_ids_BT: Array | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Array, KVCache | None]:
        """The residual stream after this layer, BTD, and the layer's cache."""
        attended_BTD, cache = self.attn(self.attn_norm(x_BTD), positions_BT, segment_ids_BT, cache)
        x_BTD = constrain(x_BTD + attended_BTD, "BTD")
        x_BTD = constrain(x_BTD + self.mlp(self.mlp_norm(x_BTD)), "BTD")
        return x_BTD, cache


Layers = Block | nnx.List
Step = Callable[[Block, Array, Any], tuple[Array, Any]]

REMAT_POLICIES = {
    "full": None,
    "dots": jax.checkpoint_policies.save_only_these_names(PROJECTION),
}


def make_layers(config: DecoderConfig, *, rngs: nnx.Rngs) -> Layers:
    """The blocks of a model: stacked along a leading L when they are to be scanned."""
    keys = jax.random.split(rngs.params(), config.num_layers)

    def make(key: Array) -> Block:
        return Block(config, rngs=nnx.Rngs(params=key))

    return jax.vmap(make)(keys) if config.scan_layers else nnx.List([make(key) for key in keys])


def apply_layers(
    layers: Layers, step: Step, x_BTD: Array, caches: Caches | None, remat: Remat
) -> tuple[Array, Caches | None]:
    """Runs `step` over the blocks in order; the caches are stacked or listed as the blocks are."""
    if remat != "none":
        # A scanned body is compiled on its own, where no common subexpression can undo the remat.
        listed = not isinstance(layers, Block)
        step = jax.checkpoint(step, policy=REMAT_POLICIES[remat], prevent_cse=listed)
    if isinstance(layers, Block):
        return jax.lax.scan(lambda x, layer: step(layer[0], x, layer[1]), x_BTD, (layers, caches))
    written = []
    for i, block in enumerate(layers):
        x_BTD, cache = step(block, x_BTD, None if caches is None else caches[i])
        written.append(cache)
    return x_BTD, None if caches is None else tuple(written)


def unstack(layers: Layers) -> nnx.List:
    """The blocks one by one: faster to decode with, since a scan slices every kernel anew."""
    if not isinstance(layers, Block):
        return layers
    graphdef, stacked = nnx.split(layers)
    num_layers = jax.tree.leaves(stacked)[0].shape[0]
    blocks = jax.jit(lambda tree: [_layer(tree, i) for i in range(num_layers)])(stacked)
    return nnx.List([nnx.merge(graphdef, block) for block in blocks])


def stack(layers: Layers) -> Block:
    """The inverse of `unstack`."""
    if isinstance(layers, Block):
        return layers
    states = [nnx.state(block) for block in layers]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *states)
    return nnx.merge(nnx.graphdef(layers[0]), stacked)


def _layer(stacked: nnx.State, i: int) -> nnx.State:
    return jax.tree.map(lambda x: x[i], stacked)
