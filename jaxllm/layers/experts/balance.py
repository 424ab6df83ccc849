"""Load of experts: how many tokens each one has, and the loss that evens it out."""

from collections.abc import Iterable
from typing import Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import Array

from jaxllm.config import ExpertsConfig


class Load(NamedTuple):
    """Load of a layer's experts; for several layers, stacked along a leading L."""

    tokens: Array  # number of tokens, without padding
    chosen_E: Array  # number of tokens that chose each expert
    probs_E: Array  # sum of the tokens' router probabilities of each expert
    weights_E: Array  # sum of the tokens' weights of each expert, without those it had no room for

    @classmethod
    def from_routing(
        cls, probs_BTE: Array, weights_BTk: Array, chosen_BTk: Array, is_token_BT: Array | None
    ) -> Self:
        """Computes the load from router probabilities, the choices and their weights.

        `is_token_BT` masks padding; None: there is none.
        """
        shape = probs_BTE.shape[:2]
        counts_BT = (
            jnp.ones(shape) if is_token_BT is None else jnp.asarray(is_token_BT, jnp.float32)
        )
        is_chosen = jax.nn.one_hot(chosen_BTk, probs_BTE.shape[-1])
        weights_BTE = jnp.einsum("BTk,BTkE->BTE", weights_BTk, is_chosen)
        each = (is_chosen.sum(-2), probs_BTE, weights_BTE)
        sums = (jnp.einsum("BT,BTE->E", counts_BT, x) for x in each)
        return cls(jnp.broadcast_to(counts_BT, shape).sum(), *sums)


def load_balance(loads: Load, balance: Literal["layer", "model", "sum", "kept"]) -> Array:
    """Returns the load-balancing loss, `E * sum over e of f_e p_e`.

    f_e is the number of choices of expert e per token, p_e its mean probability. Equal shares give
    top_k. The variants of `balance`:

        layer: the mean of the layers' losses (Fedus et al., 2022).
        model: the loss over the tokens of all layers together, as in transformers.
        sum: the sum of the layers' losses, without the factor E.
        kept: the sum of the layers' losses over only the choices whose expert was not full, with
            their mean weight as p_e; the product f_e p_e is then their weight per token.
    """
    if balance == "model":
        loads = jax.tree.map(lambda x: x.sum(0, keepdims=True), loads)
    tokens_L1 = jnp.maximum(loads.tokens, 1)[:, None]
    if balance == "kept":
        return loads.weights_E.shape[-1] * (loads.weights_E / tokens_L1).sum()
    products_LE = (loads.chosen_E / tokens_L1) * (loads.probs_E / tokens_L1)
    if balance == "sum":
        return products_LE.sum()
    return products_LE.shape[-1] * products_LE.sum(-1).mean()


class Balance(NamedTuple):
    """How evenly a model uses its experts; 0 and None for a model without."""

    aux_loss: Array  # the weighted load-balancing loss, a scalar
    # Choices of the fullest expert of any layer, in even shares: from 1 to the number of experts.
    fullest: Array | None = None

    def joined_with(self, other: "Balance") -> "Balance":
        """Returns the balance of two stacks together."""
        given = [one.fullest for one in (self, other) if one.fullest is not None]
        fullest = jnp.stack(given).max() if given else None
        return Balance(self.aux_loss + other.aux_loss, fullest)


def balance_of(experts: ExpertsConfig | None, loads: Iterable[Load | None]) -> Balance:
    """Returns the balance of a model's layers.

    `loads` may be of single layers or stacked; None stands for a layer without experts.
    """
    given = [load for load in loads if load is not None]
    if experts is None or not given:
        return Balance(jnp.zeros((), jnp.float32))
    rows = [Load(x.tokens.reshape(-1), *(y.reshape(-1, y.shape[-1]) for y in x[1:])) for x in given]
    stacked = jax.tree.map(lambda *xs: jnp.concatenate(xs), *rows)
    even_L1 = jnp.maximum(stacked.chosen_E.mean(-1, keepdims=True), 1e-9)
    fullest = jax.lax.stop_gradient((stacked.chosen_E / even_L1).max())
    return Balance(experts.aux_weight * load_balance(stacked, experts.balance), fullest)
