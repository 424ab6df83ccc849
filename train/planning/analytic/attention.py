"""FLOPs of fused attention, whose kernels leave out tiles that a program's text does not show."""

import math

import jax.numpy as jnp
import numpy as np

from jaxllm.config import Config, StackConfig, stacks_of

from .program import Op

# Products of queries' or scores' size that each kernel computes, by a part of its name: scores and
# outputs; of the queries' gradient three; of the keys' and values' four.
_PRODUCTS = {
    **{"attention_forward": 2, "attention_backward_queries": 3, "attention_backward_keys": 4},
    **{"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4},
}


def attention_flops(op: Op, keys_seen: float) -> float | None:
    """Returns the FLOPs of an attention kernel on one device; None for another kernel.

    Args:
        op: a `pallas_call`.
        keys_seen: how many keys a query sees, on average.
    """
    products = [count for name, count in _PRODUCTS.items() if name in str(op.params["name"])]
    if not products:
        return None
    queries = next(value for value in op.inputs if jnp.issubdtype(value.dtype, jnp.floating))
    return products[0] * 2.0 * math.prod(queries.shape) * keys_seen


def mean_keys_seen(model: Config, seq_len: int) -> float:
    """Returns how many keys a query of self-attention sees, on average over layers and positions.

    Documents are taken to be as long as the sequence.
    """
    each = [
        _keys_seen(stack, kind.attention, seq_len)
        for stack in stacks_of(model)
        for kind in stack.kinds
        if kind.attention != "delta"  # which have no keys to see
    ]
    return float(np.mean(each)) if each else 0.0


def _keys_seen(stack: StackConfig, attention: str, T: int) -> float:
    places, limit = np.arange(T), getattr(stack.attention, attention, None) or T
    first = places % limit if attention == "chunk" else np.minimum(places, limit - 1)
    last = T - 1 - places  # windows limit what is behind a query, not what is ahead
    if attention == "chunk":
        last = np.minimum(last, limit - 1 - first)
    return float(np.mean(first + 1 + (0 if stack.attention.causal else last)))
