"""A mixture of experts: each token goes to the few that a router chooses for it."""

from collections.abc import Iterable
from typing import Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from jaxllm.config import Experts, StackConfig
from jaxllm.layers.linear import PROJECTION, Linear
from jaxllm.layers.mlp import MLP, activate
from jaxllm.sharding import constrain


class Load(NamedTuple):
    """How a layer's router spread its tokens; of several layers, stacked along a leading L."""

    tokens: Array  # how many; padding does not count
    chosen_E: Array  # how many of them chose each expert
    probs_E: Array  # the sum of their probabilities of it

    @classmethod
    def of(cls, probs_BTE: Array, chosen_BTk: Array, is_token_BT: Array | None) -> Self:
        """That of the router's probabilities and choices."""
        shape = probs_BTE.shape[:2]
        counts_BT = (
            jnp.ones(shape) if is_token_BT is None else jnp.asarray(is_token_BT, jnp.float32)
        )
        chosen_BTE = jax.nn.one_hot(chosen_BTk, probs_BTE.shape[-1]).sum(-2)
        sums = (jnp.einsum("BT,BTE->E", counts_BT, x) for x in (chosen_BTE, probs_BTE))
        return cls(jnp.broadcast_to(counts_BT, shape).sum(), *sums)


class MoE(nnx.Module):
    """`sum over the chosen experts e of weight_e * expert_e(x)`, plus the shared expert's if any.

    Tokens are sorted by expert, and each expert multiplies its own: no expert computes a token
    that did not choose it, and none is dropped. With a capacity, those that come to an expert that
    is full go to one overflow expert, so that what a token gets depends on those before it.
    """

    def __init__(self, config: StackConfig, *, rngs: nnx.Rngs):
        experts = config.experts
        assert experts is not None, "checked by the config"
        D, E, F = config.embed_dim, experts.num_experts, experts.mlp_dim
        self.config, self.experts = config, experts
        bias = experts.router_bias
        self.router = Linear("BTD,DE->BTE", (D, E), config=config, use_bias=bias, rngs=rngs)
        gate = Projections("EDF", (E, D, F), config, rngs) if config.gated_mlp else None
        self.gate_proj = nnx.data(gate)
        self.up_proj = Projections("EDF", (E, D, F), config, rngs)
        self.down_proj = Projections("EFD", (E, F, D), config, rngs)
        shared = experts.shared_mlp_dim
        self.shared = nnx.data(None if shared is None else MLP(config, mlp_dim=shared, rngs=rngs))
        is_full = experts.capacity is not None
        self.overflow = nnx.data(MLP(config, mlp_dim=F, rngs=rngs) if is_full else None)

    def __call__(self, x_BTD: Array, is_token_BT: Array | None = None) -> tuple[Array, Load]:
        """Each position transformed on its own, BTD, and the experts' load.

        `is_token_BT` says which positions count for the load, and for what an expert can take; the
        others are padding.
        """
        probs_BTE, weights_BTk, chosen_BTk = self.choose(x_BTD)
        k, D = chosen_BTk.shape[-1], x_BTD.shape[-1]
        weight = weights_BTk.reshape(-1, 1).astype(x_BTD.dtype)  # of each choice of each token
        expert, count = chosen_BTk.reshape(-1), self.experts.num_experts
        if self.experts.capacity is not None:
            is_token = True if is_token_BT is None else jnp.repeat(is_token_BT.reshape(-1), k)
            expert = overflowing(jnp.where(is_token, expert, count), count, self.experts.capacity)
            count += 1
        order = jnp.argsort(expert)  # stable
        counts_E = jnp.bincount(expert, length=count)
        rows = x_BTD.reshape(-1, D)[order // k]
        if self.experts.scale == "input":
            rows = rows * weight[order]
        rows = self.run(rows, counts_E, expert[order])
        out = jnp.zeros_like(rows).at[order].set(rows, unique_indices=True)
        if self.experts.scale == "output":
            out = out * weight
        out_BTD = constrain(out.reshape(*chosen_BTk.shape, D).sum(-2), "BTD")
        if self.shared is not None:
            out_BTD = out_BTD + self.shared(x_BTD)
        return out_BTD, Load.of(probs_BTE, chosen_BTk, is_token_BT)

    def choose(self, x_BTD: Array) -> tuple[Array, Array, Array]:
        """The router's probabilities BTE; the chosen experts' weights and numbers, BT top_k.

        The logits have the dtype of activations, as in the originals; what follows is float32.
        """
        logits_BTE = constrain(self.router(x_BTD), "BT.").astype(jnp.float32)
        probs_BTE = jax.nn.softmax(logits_BTE, axis=-1)
        best_BTk, chosen_BTk = jax.lax.top_k(logits_BTE, self.experts.top_k)
        if self.experts.scores == "sigmoid":
            weights_BTk = jax.nn.sigmoid(best_BTk)
        else:
            weights_BTk = jnp.take_along_axis(probs_BTE, chosen_BTk, axis=-1)
        if self.experts.normalize:
            weights_BTk /= weights_BTk.sum(-1, keepdims=True)
        return probs_BTE, weights_BTk, chosen_BTk

    def run(self, rows: Array, counts_E: Array, expert: Array) -> Array:
        """The experts on rows of width D that are sorted by expert, the overflow expert last."""

        def project(name: str, rows: Array) -> Array:
            last = None if self.overflow is None else getattr(self.overflow, name)
            return getattr(self, name)(rows, counts_E, expert, last)

        up = project("up_proj", rows)
        if self.gate_proj is None:
            return project("down_proj", activate(self.config.activation, up))
        gate = project("gate_proj", rows)
        return project("down_proj", activate(self.config.activation, gate) * up)


def overflowing(expert: Array, count: int, capacity: int) -> Array:
    """The expert of each choice, in order, or `count` for those that find theirs full."""
    order = jnp.argsort(expert)  # stable
    sorted_expert, sizes = expert[order], jnp.bincount(expert, length=count + 1)
    starts = jnp.cumsum(sizes) - sizes
    taken = jnp.arange(expert.size) - starts[sorted_expert]  # before this one, of its expert
    fitting = jnp.where(taken < capacity, sorted_expert, count)
    return jnp.zeros_like(expert).at[order].set(fitting, unique_indices=True)


class Projections(nnx.Module):
    """A projection for each expert, of rows that are sorted by expert."""

    def __init__(self, dims: str, shape: tuple[int, int, int], config: StackConfig, rngs: nnx.Rngs):
        kernel = config.init_std * rngs.params.normal(shape, config.param_dtype)
        bias = jnp.zeros((shape[0], shape[2]), config.param_dtype)
        self.dtype = config.dtype
        self.kernel = nnx.Param(kernel, dims=dims)
        bias_dims = dims[0] + dims[2]
        self.bias = nnx.data(nnx.Param(bias, dims=bias_dims) if config.mlp_bias else None)

    def __call__(
        self, rows: Array, counts_E: Array, expert: Array, last: Linear | None = None
    ) -> Array:
        """`row @ kernel[its expert] + bias[its expert]`; `counts_E` rows go to each expert.

        `last` is a projection of one more expert.
        """
        kernel, bias = self.kernel[...], None if self.bias is None else self.bias[...]
        if last is not None:
            kernel = jnp.concatenate([kernel, last.kernel[...][None]])
            if bias is not None and last.bias is not None:
                bias = jnp.concatenate([bias, last.bias[...][None]])
        y = project_groups(rows, kernel, counts_E)
        if bias is not None:
            y += bias.astype(jnp.float32)[expert]
        return checkpoint_name(y.astype(self.dtype), PROJECTION)


@jax.custom_vjp
def project_groups(rows: Array, kernel: Array, counts: Array) -> Array:
    """The first `counts[0]` rows times `kernel[0]`, the next `counts[1]` times `kernel[1]`, ...

    In the dtype of `rows`, accumulated and returned in float32. The kernel's gradient comes in the
    kernel's own dtype, not rounded to that of `rows` before.
    """
    return jax.lax.ragged_dot(
        rows, kernel.astype(rows.dtype), counts, preferred_element_type=jnp.float32
    )


def _project_groups_forward(
    rows: Array, kernel: Array, counts: Array
) -> tuple[Array, tuple[Array, Array, Array]]:
    return project_groups(rows, kernel, counts), (rows, kernel, counts)


def _project_groups_backward(
    saved: tuple[Array, Array, Array], dy: Array
) -> tuple[Array, Array, None]:
    rows, kernel, counts = saved
    dy = dy.astype(rows.dtype)
    drows = project_groups(dy, kernel.swapaxes(1, 2), counts)
    by_group = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((0,), (0,)), ((), ())),
        lhs_ragged_dimensions=[0],
        rhs_group_dimensions=[],
    )
    dkernel = jax.lax.ragged_dot_general(
        rows, dy, counts, by_group, preferred_element_type=jnp.float32
    )
    return drows.astype(rows.dtype), dkernel.astype(kernel.dtype), None


project_groups.defvjp(_project_groups_forward, _project_groups_backward)


def load_balance(loads: Load, balance: Literal["layer", "model", "sum"]) -> Array:
    """`E * sum over e of f_e p_e`: choices of e per token and its mean probability.

    That of each layer and then the mean (Fedus et al., 2022), or of all layers' tokens together,
    as transformers has it. Equal shares give top_k. `sum` is that of each layer without the factor
    E and then the sum.
    """
    if balance == "model":
        loads = jax.tree.map(lambda x: x.sum(0, keepdims=True), loads)
    tokens_L1 = jnp.maximum(loads.tokens, 1)[:, None]
    products_LE = (loads.chosen_E / tokens_L1) * (loads.probs_E / tokens_L1)
    if balance == "sum":
        return products_LE.sum()
    return products_LE.shape[-1] * products_LE.sum(-1).mean()


def aux_loss(experts: Experts | None, loads: Iterable[Load | None]) -> Array:
    """What the loads of a model's layers, single or stacked, add to its training loss."""
    given = [load for load in loads if load is not None]
    if experts is None or not given:
        return jnp.zeros((), jnp.float32)
    rows = [Load(x.tokens.reshape(-1), *(y.reshape(-1, y.shape[-1]) for y in x[1:])) for x in given]
    stacked = jax.tree.map(lambda *xs: jnp.concatenate(xs), *rows)
    return experts.aux_weight * load_balance(stacked, experts.balance)
