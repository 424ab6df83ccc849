"""Mixture of experts (MoE): a router sends each token to a few of many expert MLPs."""

import dataclasses
from functools import partial
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxllm.config import Dtype, MlpConfig, StackConfig
from jaxllm.layers.adapters.low_rank import LowRank, summed_dims
from jaxllm.layers.linear import Linear, init_kernel, project
from jaxllm.layers.mlp import MLP, activate, gated
from jaxllm.sharding import constrain, multi_device_mesh

from .balance import Load
from .expert_parallel import (
    ApplyGroups,
    exchange_rows,
    group_by_device,
    map_over_devices,
    shards_experts,
)
from .grouped_rows import blocking, map_groups
from .routing import route

Parts = dict[str, Any]  # the experts' projections by name: of one device, or of all
Kernel = tuple[Array, Array | None]  # and its bias
Kernels = dict[str, Kernel]  # by the name of the projection
Module = TypeVar("Module")


class MoE(nnx.Module):
    """Mixture of experts: the sum of `weight_e * expert_e(x)` over the experts e that x chose.

    The output of a shared expert is added if the config has one, times its gate if it has that.

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
        wide: Dtype | None = "float32" if experts.router_in_float32 else None
        self.router = Linear(
            "BTD,DE->BTE",
            (D, E),
            config=config,
            use_bias=bias,
            dtype=wide,
            is_exact=True,
            rngs=rngs,
        )
        correction = nnx.Param(jnp.zeros(E, config.numerics.param_dtype), dims="E")
        self.correction_bias = nnx.data(correction if experts.correction_bias else None)
        into = partial(Projections, "ED,EDF->EF", (E, D, F), config, rngs)
        self.gate_proj = nnx.data(into() if config.mlp.gated else None)
        self.up_proj = into()
        self.down_proj = Projections("EF,EFD->ED", (E, F, D), config, rngs)
        shared = experts.shared_mlp_dim
        self.shared = nnx.data(None if shared is None else MLP(config, mlp_dim=shared, rngs=rngs))
        gate = Linear("BTD,DO->BTO", (D, 1), config=config, is_exact=True, rngs=rngs)
        self.shared_gate = nnx.data(gate if experts.shared_gate else None)
        is_full = experts.capacity is not None
        self.overflow = nnx.data(MLP(config, mlp_dim=F, rngs=rngs) if is_full else None)

    def __call__(self, x_BTD: Array, is_token_BT: Array | None = None) -> tuple[Array, Load]:
        """Transforms each position; returns the output, BTD, and the load of the experts.

        `is_token_BT` masks padding, which counts neither for the load nor for the capacity.
        """
        probs_BTE, weights_BTk, chosen_BTk = self.route(x_BTD)
        taken_BTk = self.apply_capacity(chosen_BTk, is_token_BT)
        names = ("gate_proj", "up_proj", "down_proj", "overflow")
        parts = {name: with_delta(getattr(self, name)) for name in names}
        k, D = chosen_BTk.shape[-1], x_BTD.shape[-1]
        tokens = x_BTD.reshape(-1, D), weights_BTk.reshape(-1, k), taken_BTk.reshape(-1, k)
        mesh = multi_device_mesh()
        if mesh is None:
            out_SD = self.apply_experts(parts, *tokens)
        else:
            is_split = shards_experts(mesh, self.experts.num_experts)
            out_SD = map_over_devices(
                mesh,
                self.apply_sharded if is_split else self.apply_experts,
                parts,
                *tokens,
                self.config.numerics.reduce_dtype,
            )
        out_BTD = constrain(out_SD.reshape(x_BTD.shape), "BTD")
        if self.shared is not None:
            shared_BTD = self.shared(x_BTD)
            if self.shared_gate is not None:
                shared_BTD = jax.nn.sigmoid(self.shared_gate(x_BTD)) * shared_BTD
            out_BTD = out_BTD + shared_BTD
        kept = taken_BTk < self.experts.num_experts
        return out_BTD, Load.from_routing(probs_BTE, weights_BTk * kept, chosen_BTk, is_token_BT)

    def route(self, x_BTD: Array) -> tuple[Array, Array, Array]:
        """Chooses the experts of each token.

        Router logits have the activation dtype, as in most original models; the rest is float32.

        Returns:
            The router's probabilities, BTE, the weights of the chosen experts, (B, T, top_k), and
            their indices, (B, T, top_k).
        """
        logits_BTE = constrain(self.router(x_BTD), "BT.").astype(jnp.float32)
        bias = self.correction_bias
        return route(self.experts, logits_BTE, None if bias is None else bias[...])

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
        run = self.row_function(parts, expert_Sk.size, count)
        return self.combine(run, count, x_SD, weights_Sk, expert_Sk)

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
        run = self.row_function(parts, expert_Sk.size, num_own + has_overflow)
        run = exchange_rows(run, room=most * x_SD.shape[0])
        count = devices * (num_own + has_overflow)
        return self.combine(run, count, x_SD, weights_Sk, group_Sk)

    def combine(
        self, run: ApplyGroups, count: int, x_SD: Array, weights_Sk: Array, group_Sk: Array
    ) -> Array:
        """Runs the experts on one row per choice, sorted by group; returns weighted sums, SD.

        Choices of groups from `count` on contribute nothing.
        """
        weight_M1, group = weights_Sk.reshape(-1, 1).astype(x_SD.dtype), group_Sk.reshape(-1)
        order = jnp.argsort(group)  # stable
        rows_MD, weight_M1 = x_SD[order // group_Sk.shape[1]], weight_M1[order]
        is_output = self.experts.scale == "output"
        rows = (rows_MD, weight_M1) if is_output else (rows_MD * weight_M1,)
        sorted_MD = run(rows, jnp.bincount(group, length=count))
        out = jnp.zeros_like(sorted_MD).at[order].set(sorted_MD, unique_indices=True)
        return out.reshape(*group_Sk.shape, -1).sum(1)

    def row_function(self, parts: Parts, rows: int, groups: int) -> ApplyGroups:
        """Returns the function that runs experts on rows sorted by expert, the overflow last.

        Args:
            parts: the experts.
            rows: how many rows are expected.
            groups: the number of experts, with the overflow expert.
        """
        names = [name for name in ("gate_proj", "up_proj", "down_proj") if parts[name] is not None]
        overflow = parts["overflow"]
        last = {name: None if overflow is None else getattr(overflow, name) for name in names}
        params = {name: parts[name].stacked_with(last[name]) for name in names}
        function = ExpertMLP(self.config.mlp, self.config.numerics.dtype)
        return partial(map_groups, function, blocking(rows, groups), params)


@dataclasses.dataclass(frozen=True)
class ExpertMLP:
    """One expert's MLP, as `jaxllm.layers.mlp.MLP`; times a weight if given.

    Kept as plain data, so that equal layers are compiled once.
    """

    config: MlpConfig
    dtype: Dtype

    def __call__(self, params: Kernels, rows_MD: Array, weight_M1: Array | None = None) -> Array:
        """Returns the output of each row, MD."""
        up_MF = self.project(params["up_proj"], rows_MD)
        if "gate_proj" in params:
            gate_MF = self.project(params["gate_proj"], rows_MD)
            hidden_MF = gated(self.config, gate_MF, up_MF)
        else:
            hidden_MF = activate(self.config.activation, up_MF)
        out_MD = self.project(params["down_proj"], hidden_MF)
        return out_MD if weight_M1 is None else out_MD * weight_M1

    def project(self, params: Kernel, rows: Array) -> Array:
        """Multiplies rows by a kernel and adds its bias, if it has one."""
        kernel, bias = params
        y = project("MD,DF->MF", rows, kernel)
        return (y if bias is None else y + bias.astype(jnp.float32)).astype(self.dtype)


def assign_overflow(expert: Array, count: int, capacity: int) -> Array:
    """Replaces a choice by `count` where its expert already has `capacity` earlier choices."""
    order = jnp.argsort(expert)  # stable
    sorted_expert, sizes = expert[order], jnp.bincount(expert, length=count + 1)
    starts = jnp.cumsum(sizes) - sizes
    taken = jnp.arange(expert.size) - starts[sorted_expert]  # earlier choices of the same expert
    fitting = jnp.where(taken < capacity, sorted_expert, count)
    return jnp.zeros_like(expert).at[order].set(fitting, unique_indices=True)


class Projections(nnx.Module):
    """One projection per expert."""

    def __init__(
        self, equation: str, shape: tuple[int, int, int], config: StackConfig, rngs: nnx.Rngs
    ):
        _, dims, bias_dims = equation.replace("->", ",").split(",")
        kernel = init_kernel(equation, shape, config, rngs)
        bias = jnp.zeros((shape[0], shape[2]), config.numerics.param_dtype)
        self.equation = equation
        self.kernel = nnx.Param(kernel, dims=dims, summed=summed_dims(equation))
        self.bias = nnx.data(nnx.Param(bias, dims=bias_dims) if config.mlp.bias else None)
        self.lora: LowRank | None = nnx.data(None)  # `jaxllm.lora.attach` adds it

    def stacked_with(self, last: Linear | None) -> Kernel:
        """Returns the kernels and biases of all experts, and of one more after them if given."""
        kernel, bias = self.kernel[...], None if self.bias is None else self.bias[...]
        if last is None:
            return kernel, bias
        kernel = jnp.concatenate([kernel, last.kernel[...][None]])
        if bias is not None and last.bias is not None:
            bias = jnp.concatenate([bias, last.bias[...][None]])
        return kernel, bias


def with_delta(module: Module) -> Module:
    """Returns experts with what LoRA adds in their kernels, each in its own dtype.

    Rows of many experts pass through one product, where a factor beside each kernel would cost two
    more; devices would also have to exchange factors. PEFT does the same.
    """
    if not isinstance(module, Projections) or module.lora is None:
        return module
    changed = nnx.merge(*nnx.split(module))
    kernel = module.kernel[...]
    # Replaced, not set: both modules would share the variable.
    kernel = (kernel + module.lora.delta()).astype(kernel.dtype)
    changed.kernel = cast(nnx.Param, module.kernel.replace(kernel))
    changed.lora = nnx.data(None)
    return changed
