"""Mixture of experts (MoE): a router sends each token to a few of many expert MLPs."""

from collections.abc import Iterable
from functools import partial
from typing import Any, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from jaxllm.config import ExpertsConfig, StackConfig
from jaxllm.layers.linear import PROJECTION, Linear, init_kernel
from jaxllm.layers.mlp import MLP, activate
from jaxllm.sharding import constrain, multi_device_mesh

from .expert_parallel import (
    ApplyGroups,
    exchange_rows,
    group_by_device,
    map_over_devices,
    shards_experts,
)
from .grouped_matmul import project_groups

Parts = dict[str, Any]  # the experts' projections by name: of one device, or of all


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


class MoE(nnx.Module):
    """Mixture of experts: the sum of `weight_e * expert_e(x)` over the experts e that x chose.

    The output of a shared expert is added if the config has one.

    Tokens are sorted by expert and each expert processes only the tokens that chose it; no token
    is dropped. With a capacity, tokens that find their expert full go to one overflow expert, so
    that a token's output depends on the tokens before it in the call, those of other rows included.
    """

    def __init__(self, config: StackConfig, *, rngs: nnx.Rngs):
        experts = config.experts
        assert experts is not None, "checked by the config"
        D, E, F = config.embed_dim, experts.num_experts, experts.mlp_dim
        self.config, self.experts = config, experts
        bias = experts.router_bias
        self.router = Linear("BTD,DE->BTE", (D, E), config=config, use_bias=bias, rngs=rngs)
        into = partial(Projections, "ED,EDF->EF", (E, D, F), config, rngs)
        self.gate_proj = nnx.data(into() if config.mlp.gated else None)
        self.up_proj = into()
        self.down_proj = Projections("EF,EFD->ED", (E, F, D), config, rngs)
        shared = experts.shared_mlp_dim
        self.shared = nnx.data(None if shared is None else MLP(config, mlp_dim=shared, rngs=rngs))
        is_full = experts.capacity is not None
        self.overflow = nnx.data(MLP(config, mlp_dim=F, rngs=rngs) if is_full else None)

    def __call__(self, x_BTD: Array, is_token_BT: Array | None = None) -> tuple[Array, Load]:
        """Transforms each position; returns the output, BTD, and the load of the experts.

        `is_token_BT` masks padding, which counts neither for the load nor for the capacity.
        """
        probs_BTE, weights_BTk, chosen_BTk = self.route(x_BTD)
        taken_BTk = self.apply_capacity(chosen_BTk, is_token_BT)
        names = ("gate_proj", "up_proj", "down_proj", "overflow")
        parts = {name: getattr(self, name) for name in names}
        k, D = chosen_BTk.shape[-1], x_BTD.shape[-1]
        tokens = x_BTD.reshape(-1, D), weights_BTk.reshape(-1, k), taken_BTk.reshape(-1, k)
        mesh = multi_device_mesh()
        if mesh is None:
            out_SD = self.apply_experts(parts, *tokens)
        else:
            is_split = shards_experts(mesh, self.experts.num_experts)
            out_SD = map_over_devices(
                mesh, self.apply_sharded if is_split else self.apply_experts, parts, *tokens
            )
        out_BTD = constrain(out_SD.reshape(x_BTD.shape), "BTD")
        if self.shared is not None:
            out_BTD = out_BTD + self.shared(x_BTD)
        kept = taken_BTk < self.experts.num_experts
        return out_BTD, Load.from_routing(probs_BTE, weights_BTk * kept, chosen_BTk, is_token_BT)

    def route(self, x_BTD: Array) -> tuple[Array, Array, Array]:
        """Chooses the experts of each token.

        Router logits have the activation dtype, as in the original models; the rest is float32.

        Returns:
            The router's probabilities, BTE, the weights of the chosen experts, (B, T, top_k), and
            their indices, (B, T, top_k).
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

    def apply_capacity(self, chosen_BTk: Array, is_token_BT: Array | None) -> Array:
        """Returns the chosen experts, with index `num_experts` where an expert is full."""
        count, capacity = self.experts.num_experts, self.experts.capacity
        if capacity is None:
            return chosen_BTk
        is_token = True if is_token_BT is None else is_token_BT[..., None]
        chosen = jnp.where(is_token, chosen_BTk, count).reshape(-1)
        return assign_overflow(chosen, count, capacity).reshape(chosen_BTk.shape)

    def apply_experts(
        self, parts: Parts, x_SD: Array, weights_Sk: Array, expert_Sk: Array
    ) -> Array:
        """Returns the weighted sum of each token's expert outputs, SD.

        Choices beyond the experts and the overflow expert contribute nothing.
        """
        count = self.experts.num_experts + (self.overflow is not None)
        return self.combine(partial(self.apply_mlp, parts), count, x_SD, weights_Sk, expert_Sk)

    def apply_sharded(
        self, parts: Parts, x_SD: Array, weights_Sk: Array, expert_Sk: Array
    ) -> Array:
        """Does what `apply_experts` does for one device's tokens, with the experts of all devices.

        `parts` are the experts of this device.
        """
        devices, has_overflow = jax.lax.axis_size("expert"), self.overflow is not None
        num_own = self.experts.num_experts // devices
        group_Sk = group_by_device(expert_Sk, num_own, has_overflow=has_overflow)
        # A token's experts are distinct, but several of its choices may go to the overflow expert.
        most = self.experts.top_k if has_overflow else min(self.experts.top_k, num_own)
        run = exchange_rows(partial(self.apply_mlp, parts), room=most * x_SD.shape[0])
        count = devices * (num_own + has_overflow)
        return self.combine(run, count, x_SD, weights_Sk, group_Sk)

    def combine(
        self, run: ApplyGroups, count: int, x_SD: Array, weights_Sk: Array, group_Sk: Array
    ) -> Array:
        """Runs the experts on one row per choice, sorted by group; returns weighted sums, SD.

        Choices of groups from `count` on contribute nothing.
        """
        weight, group = weights_Sk.reshape(-1, 1).astype(x_SD.dtype), group_Sk.reshape(-1)
        order = jnp.argsort(group)  # stable
        rows = x_SD[order // group_Sk.shape[1]]
        if self.experts.scale == "input":
            rows = rows * weight[order]
        rows = run(rows, jnp.bincount(group, length=count), group[order])
        out = jnp.zeros_like(rows).at[order].set(rows, unique_indices=True)
        if self.experts.scale == "output":
            out = out * weight
        return out.reshape(*group_Sk.shape, -1).sum(1)

    def apply_mlp(self, parts: Parts, rows: Array, counts_E: Array, expert: Array) -> Array:
        """Runs the experts on rows of width D, sorted by expert, the overflow expert last."""

        def of(name: str, rows: Array) -> Array:
            last = None if parts["overflow"] is None else getattr(parts["overflow"], name)
            return parts[name](rows, counts_E, expert, last)

        up = of("up_proj", rows)
        if parts["gate_proj"] is None:
            return of("down_proj", activate(self.config.mlp.activation, up))
        gate = of("gate_proj", rows)
        return of("down_proj", activate(self.config.mlp.activation, gate) * up)


def assign_overflow(expert: Array, count: int, capacity: int) -> Array:
    """Replaces a choice by `count` where its expert already has `capacity` earlier choices."""
    order = jnp.argsort(expert)  # stable
    sorted_expert, sizes = expert[order], jnp.bincount(expert, length=count + 1)
    starts = jnp.cumsum(sizes) - sizes
    taken = jnp.arange(expert.size) - starts[sorted_expert]  # earlier choices of the same expert
    fitting = jnp.where(taken < capacity, sorted_expert, count)
    return jnp.zeros_like(expert).at[order].set(fitting, unique_indices=True)


class Projections(nnx.Module):
    """One projection per expert, applied to rows that are sorted by expert."""

    def __init__(
        self, equation: str, shape: tuple[int, int, int], config: StackConfig, rngs: nnx.Rngs
    ):
        _, dims, bias_dims = equation.replace("->", ",").split(",")
        kernel = init_kernel(equation, shape, config, rngs)
        bias = jnp.zeros((shape[0], shape[2]), config.numerics.param_dtype)
        self.dtype = config.numerics.dtype
        self.kernel = nnx.Param(kernel, dims=dims)
        self.bias = nnx.data(nnx.Param(bias, dims=bias_dims) if config.mlp.bias else None)

    def __call__(
        self, rows: Array, counts_E: Array, expert: Array, last: Linear | None = None
    ) -> Array:
        """Returns `row @ kernel[expert] + bias[expert]` for each row.

        Args:
            rows: sorted by expert.
            counts_E: number of rows of each expert.
            expert: the expert of each row.
            last: the projection of one more expert, after all others.
        """
        kernel, bias = self.kernel[...], None if self.bias is None else self.bias[...]
        if last is not None:
            kernel = jnp.concatenate([kernel, last.kernel[...][None]])
            if bias is not None and last.bias is not None:
                bias = jnp.concatenate([bias, last.bias[...][None]])
        y = project_groups(rows, kernel, counts_E)
        if bias is not None:
            y += bias.astype(jnp.float32).at[expert].get(mode="fill", fill_value=0)
        return checkpoint_name(y.astype(self.dtype), PROJECTION)


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


def aux_loss(experts: ExpertsConfig | None, loads: Iterable[Load | None]) -> Array:
    """Returns the auxiliary loss of a model's layers: the weighted load-balancing loss.

    `loads` may be of single layers or stacked; None stands for a layer without experts.
    """
    given = [load for load in loads if load is not None]
    if experts is None or not given:
        return jnp.zeros((), jnp.float32)
    rows = [Load(x.tokens.reshape(-1), *(y.reshape(-1, y.shape[-1]) for y in x[1:])) for x in given]
    stacked = jax.tree.map(lambda *xs: jnp.concatenate(xs), *rows)
    return experts.aux_weight * load_balance(stacked, experts.balance)
