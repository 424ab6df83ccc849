"""A mixture of experts: each token goes to the few that a router chooses for it."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from jaxllm.config import DecoderConfig
from jaxllm.layers.linear import PROJECTION, Linear
from jaxllm.layers.mlp import MLP, activate


class MoE(nnx.Module):
    """`sum over the chosen experts e of weight_e * expert_e(x)`, plus the shared expert's if any.

    Tokens are sorted by expert, and each expert multiplies its own: no expert computes a token
    that did not choose it, and none is dropped.
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        experts = config.experts
        assert experts is not None, "checked by the config"
        D, E, F = config.embed_dim, experts.num_experts, experts.mlp_dim
        self.config, self.experts = config, experts
        self.router = Linear("BTD,DE->BTE", (D, E), config=config, rngs=rngs)
        gate = Expert("EDF", (E, D, F), config, rngs) if config.gated_mlp else None
        self.gate_proj = nnx.data(gate)
        self.up_proj = Expert("EDF", (E, D, F), config, rngs)
        self.down_proj = Expert("EFD", (E, F, D), config, rngs)
        shared = experts.shared_mlp_dim
        self.shared = nnx.data(None if shared is None else MLP(config, mlp_dim=shared, rngs=rngs))

    def __call__(self, x_BTD: Array) -> tuple[Array, Array]:
        """Each position transformed on its own, BTD, and the load-balancing loss, weighted."""
        x_BTD_shape, D = x_BTD.shape, x_BTD.shape[-1]
        logits_BTE = self.router.accumulate(x_BTD)
        probs_BTE, weights_BTk, chosen_BTk = self.choose(logits_BTE)
        top_k = chosen_BTk.shape[-1]
        expert = chosen_BTk.reshape(-1)  # of each (token, choice)
        order = jnp.argsort(expert, stable=True)
        counts_E = jnp.bincount(expert, length=self.experts.num_experts).astype(jnp.int32)
        weight = weights_BTk.reshape(-1, 1).astype(x_BTD.dtype)
        rows = x_BTD.reshape(-1, D)[order // top_k]
        if self.experts.scale == "input":
            rows = rows * weight[order]
        out = (
            jnp.zeros_like(rows)
            .at[order]
            .set(self.run(rows, counts_E, expert[order]), unique_indices=True)
        )
        if self.experts.scale == "output":
            out = out * weight
        out_BTD = out.reshape(-1, top_k, D).sum(1).reshape(x_BTD_shape)
        if self.shared is not None:
            out_BTD = out_BTD + self.shared(x_BTD)
        return out_BTD, self.experts.aux_weight * load_balance(probs_BTE, chosen_BTk)

    def choose(self, logits_BTE: Array) -> tuple[Array, Array, Array]:
        """The router's probabilities BTE; the chosen experts' weights and numbers, BT top_k."""
        probs_BTE = jax.nn.softmax(logits_BTE, axis=-1)
        if self.experts.scores == "sigmoid":
            best_BTk, chosen_BTk = jax.lax.top_k(logits_BTE, self.experts.top_k)
            weights_BTk = jax.nn.sigmoid(best_BTk)
        else:
            weights_BTk, chosen_BTk = jax.lax.top_k(probs_BTE, self.experts.top_k)
        if self.experts.normalize:
            weights_BTk /= weights_BTk.sum(-1, keepdims=True)
        return probs_BTE, weights_BTk, chosen_BTk

    def run(self, rows: Array, counts_E: Array, expert: Array) -> Array:
        """The experts on rows of width D that are sorted by expert."""
        up = self.up_proj(rows, counts_E, expert)
        if self.gate_proj is None:
            return self.down_proj(activate(self.config.activation, up), counts_E, expert)
        gate = self.gate_proj(rows, counts_E, expert)
        return self.down_proj(activate(self.config.activation, gate) * up, counts_E, expert)


class Expert(nnx.Module):
    """The projections of all experts, for rows that are sorted by expert."""

    def __init__(
        self, dims: str, shape: tuple[int, int, int], config: DecoderConfig, rngs: nnx.Rngs
    ):
        kernel = config.init_std * rngs.params.normal(shape, config.param_dtype)
        bias = jnp.zeros((shape[0], shape[2]), config.param_dtype)
        self.dtype = config.dtype
        self.kernel = nnx.Param(kernel, dims=dims)
        bias_dims = dims[0] + dims[2]
        self.bias = nnx.data(nnx.Param(bias, dims=bias_dims) if config.mlp_bias else None)

    def __call__(self, rows: Array, counts_E: Array, expert: Array) -> Array:
        """`row @ kernel[its expert] + bias[its expert]`; `counts_E` rows go to each expert."""
        kernel = self.kernel[...].astype(rows.dtype)
        y = jax.lax.ragged_dot(rows, kernel, counts_E, preferred_element_type=jnp.float32)
        if self.bias is not None:
            y += self.bias[...].astype(jnp.float32)[expert]
        return checkpoint_name(y.astype(self.dtype), PROJECTION)


def load_balance(probs_BTE: Array, chosen_BTk: Array) -> Array:
    """`E * sum_e f_e p_e` (Fedus et al., 2022): choices per token of e, and e's mean probability.

    Equal shares give top_k.
    """
    E = probs_BTE.shape[-1]
    share_E = jax.nn.one_hot(chosen_BTk, E).sum(-2).mean((0, 1))
    return E * jnp.sum(share_E * probs_BTE.mean((0, 1)))
