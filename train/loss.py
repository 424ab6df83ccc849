"""Losses: chunked cross-entropy, which never holds all logits, and squared error."""

import dataclasses
import functools
import math
from typing import Any, ClassVar, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec

from jaxllm.config.checks import check_counts, check_fields, check_not_negative, check_positive
from jaxllm.layers.gather import gather_shards, scatter_sum
from jaxllm.layers.linear import Head, input_gradient, kernel_gradient
from jaxllm.sharding import multi_device_mesh, partition_spec, spec_axes


@dataclasses.dataclass(frozen=True, kw_only=True)
class DpoConfig:
    """The loss of preferences: direct preference optimization (Rafailov et al., 2023)."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    name: Literal["sigmoid", "robust", "hinge", "ipo"] = "sigmoid"  # TRL's loss_type
    beta: float = 0.1  # how near the model stays to the reference
    label_smoothing: float = 0.0  # of robust: the share of preferences that are flipped
    # When the reference's log-likelihoods are computed: for each batch, or once before training
    reference: Literal["each_step", "once"] = "each_step"

    def __post_init__(self) -> None:
        check_fields(self, "loss.dpo.")
        check_positive(self, "beta", prefix="loss.dpo.")
        check_not_negative(self, "label_smoothing", prefix="loss.dpo.")
        if self.label_smoothing >= 0.5:
            raise ValueError(
                f"loss.dpo.label_smoothing={self.label_smoothing} is not less than 0.5"
            )
        if self.label_smoothing and self.name != "robust":
            raise ValueError(
                f"loss.dpo.label_smoothing={self.label_smoothing} is of loss.dpo.name=robust, not "
                f"{self.name}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """How the cross-entropy is computed, and DPO; squared errors have no options."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    chunk_tokens: int = 2048  # tokens per device whose logits are in memory at a time
    # Factor of the squared log of the softmax's denominator, which is added to the loss of each
    # target and keeps logits near 0 (Chowdhery et al., 2022, section 5).
    z_loss: float = 0.0
    dpo: DpoConfig = DpoConfig()  # of data with preferences

    def __post_init__(self) -> None:
        check_fields(self, "loss.")
        check_counts(self, "chunk_tokens", prefix="loss.")
        check_not_negative(self, "z_loss", prefix="loss.")


def chunked_cross_entropy(
    head: Head, x_BTD: Array, targets_BT: Array, mask_BT: Array, options: LossConfig
) -> Array:
    """Returns the negative log-likelihood in nats, summed over the targets that count.

    See `grouped_cross_entropy`, without groups.
    """
    groups_BT = jnp.zeros(targets_BT.shape, jnp.int32)
    return grouped_cross_entropy(head, x_BTD, targets_BT, mask_BT, options, groups_BT, 1)[0]


def grouped_cross_entropy(
    head: Head,
    x_BTD: Array,
    targets_BT: Array,
    mask_BT: Array,
    options: LossConfig,
    groups_BT: Array,
    num_groups: int,
) -> tuple[Array, Array]:
    """Returns the negative log-likelihood in nats, summed over the targets that count.

    On a mesh, every device works through its own tokens. It gathers the head once, in the dtype of
    the hidden states, and adds the head's gradient up in float32 over its chunks; devices sum that
    once. The gradients are computed together with the loss (Hsu et al., 2024), so that no logits
    are computed twice.

    Args:
        head: maps hidden states to logits.
        x_BTD: final hidden states.
        targets_BT: token ids to predict.
        mask_BT: which targets count.
        options: see `LossConfig`.
        groups_BT: the group of each target.
        num_groups: G.

    Returns:
        The sum, and the sum of each group, G, which has no gradient.
    """
    chex.assert_equal_shape_prefix([x_BTD, targets_BT, mask_BT, groups_BT], 2)
    mask_BT = mask_BT.astype(jnp.float32)
    options_G = options, num_groups
    loss, loss_G = _cross_entropy(options_G, head, x_BTD, targets_BT, mask_BT, groups_BT)
    return loss, lax.stop_gradient(loss_G)


Options = tuple[LossConfig, int]  # and the number of groups


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(options: Options, head: Head, *tokens: Array) -> tuple[Array, Array]:
    loss_G, *_ = losses_on_devices(options, head, *tokens, with_gradient=False)
    return loss_G.sum(), loss_G


def _forward(options: Options, head: Head, *tokens: Array) -> tuple[tuple[Array, Array], tuple]:
    loss_G, dhead, dx_BTD = losses_on_devices(options, head, *tokens, with_gradient=True)
    return (loss_G.sum(), loss_G), (dhead, dx_BTD)


def _backward(_: Options, saved: tuple[Head, Array], dlosses: tuple[Array, Array]) -> tuple:
    dhead, dx_BTD = jax.tree.map(lambda x: (x * dlosses[0]).astype(x.dtype), saved)
    return dhead, dx_BTD, None, None, None


_cross_entropy.defvjp(_forward, _backward)


class Layout(NamedTuple):
    """The mesh axes that split the tokens, and the D and V of the head's kernel."""

    tokens: tuple[str, ...] = ()
    D: tuple[str, ...] = ()
    V: tuple[str, ...] = ()


def losses_on_devices(
    options: Options, head: Head, *tokens: Array, with_gradient: bool
) -> tuple[Array, Any, Any]:
    """Returns the loss of each group and, if wanted, the gradients by head and hidden states."""
    run = functools.partial(_on_device, options, with_gradient)
    mesh = multi_device_mesh()
    if mesh is None:
        return run(Layout(), head, *tokens)
    x_BTD, rows = tokens[0], partition_spec("BT", tokens[1].shape, mesh.shape)
    kernel = partition_spec(head.dims, head.kernel.shape, mesh.shape)
    by_letter = {letter: spec_axes(axes) for letter, axes in zip(head.dims, kernel, strict=True)}
    layout = Layout(spec_axes(*rows), **by_letter)
    bias_V = PartitionSpec(layout.V or None)
    head_specs = jax.tree.unflatten(
        jax.tree.structure(head), [kernel] if head.bias_V is None else [kernel, bias_V]
    )
    specs = (head_specs, PartitionSpec(*rows, *(None,) * (x_BTD.ndim - 2)), rows, rows, rows)
    gradient_specs = (head_specs, specs[1]) if with_gradient else (None, None)
    return jax.shard_map(
        functools.partial(run, layout),
        in_specs=specs,
        out_specs=(PartitionSpec(), *gradient_specs),
        check_vma=False,
    )(head, *tokens)


def _on_device(
    options: Options,
    with_gradient: bool,
    layout: Layout,
    head: Head,
    x_BTD: Array,
    targets_BT: Array,
    mask_BT: Array,
    groups_BT: Array,
) -> tuple[Array, Any, Any]:
    """Does what `losses_on_devices` does, on one device with its part of the head and tokens."""
    (config, num_groups), S, D = options, targets_BT.size, x_BTD.shape[-1]
    num_chunks = -(-S // config.chunk_tokens)
    size = -(-S // num_chunks)
    cut = lambda x: _cut(x.reshape(S, *x.shape[2:]), num_chunks, size)  # noqa: E731
    chunks = cut(x_BTD), cut(targets_BT), cut(mask_BT), cut(groups_BT)
    kernel = gather_shards(head.kernel.astype(x_BTD.dtype), head.dims.index("D"), layout.D)
    equation = f"SD,{head.dims}->SV"

    def step(sums: tuple, chunk: tuple[Array, ...]) -> tuple[tuple, Any]:
        x_SD, targets_S, mask_S, groups_S = chunk
        product = jnp.einsum(equation, x_SD, kernel, preferred_element_type=jnp.float32)
        logits_SV, transposed = jax.vjp(head.transform, product, head.bias_V)
        nll_S, dlogits_SV = token_losses(logits_SV, targets_S, config.z_loss, layout.V)
        loss_G = _by_group(nll_S * mask_S, groups_S, num_groups)
        if not with_gradient:
            return (sums[0] + loss_G,), None
        dproduct_SV, dbias_V = transposed(dlogits_SV * mask_S[:, None])
        dproduct_SV = dproduct_SV.astype(x_SD.dtype)
        dhead = kernel_gradient(equation, x_SD, dproduct_SV), dbias_V
        dx_SD = input_gradient(equation, dproduct_SV, kernel)
        dx_SD = dx_SD if layout.V else dx_SD.astype(x_SD.dtype)  # otherwise not summed yet
        return jax.tree.map(jnp.add, sums, (loss_G, *dhead)), dx_SD

    zero_G = jnp.zeros(num_groups, jnp.float32)
    if not with_gradient:
        (loss_G,), _ = lax.scan(step, (zero_G,), chunks)
        return _sum(loss_G, layout.tokens), None, None
    bias_V = None if head.bias_V is None else jnp.zeros_like(head.bias_V, jnp.float32)
    sums = zero_G, jnp.zeros_like(kernel, jnp.float32), bias_V
    (loss_G, dkernel, dbias_V), dx = lax.scan(step, sums, chunks)
    dx_BTD = _sum(dx, layout.V).reshape(-1, D)[:S].reshape(x_BTD.shape).astype(x_BTD.dtype)
    dkernel = _scatter_sum(dkernel, head, layout)
    dbias_V = None if dbias_V is None else _sum(dbias_V, layout.tokens)
    dhead = dataclasses.replace(head, kernel=dkernel, bias_V=dbias_V)
    dhead = jax.tree.map(lambda dx, x: dx.astype(x.dtype), dhead, head)
    return _sum(loss_G, layout.tokens), dhead, dx_BTD


def token_losses(
    logits_SV: Array, targets_S: Array, z_loss: float, axes: tuple[str, ...]
) -> tuple[Array, Array]:
    """Returns each token's loss, S, and its gradient by the logits, SV, split over `axes`."""
    V = logits_SV.shape[1]
    first = lax.axis_index(axes) * V if axes else 0
    is_target_SV = lax.broadcasted_iota(jnp.int32, logits_SV.shape, 1) + first == targets_S[:, None]
    largest_S = logits_SV.max(1)
    largest_S = lax.pmax(largest_S, axes) if axes else largest_S
    total_S = _sum(jnp.exp(logits_SV - largest_S[:, None]).sum(1), axes)
    log_total_S = largest_S + jnp.log(total_S)
    loss_S = log_total_S - _sum(jnp.where(is_target_SV, logits_SV, 0).sum(1), axes)
    probs_SV = jnp.exp(logits_SV - log_total_S[:, None])
    if z_loss:
        loss_S += z_loss * log_total_S**2
        probs_SV *= 1 + 2 * z_loss * log_total_S[:, None]
    return loss_S, probs_SV - is_target_SV


def _by_group(loss_S: Array, groups_S: Array, num_groups: int) -> Array:
    """Sums losses by group; without a scatter, which accelerators take one by one."""
    if num_groups == 1:
        return jnp.sum(loss_S)[None]
    is_own_SG = groups_S[:, None] == jnp.arange(num_groups)
    return jnp.sum(jnp.where(is_own_SG, loss_S[:, None], 0), axis=0)


def _sum(x: Array, axes: tuple[str, ...]) -> Array:
    return lax.psum(x, axes) if axes else x


def _scatter_sum(dkernel: Array, head: Head, layout: Layout) -> Array:
    """Returns a device's part of the head's gradient, summed over all tokens."""
    # Devices that have the same tokens have equal terms.
    copies = math.prod(lax.axis_size(axis) for axis in layout.D if axis not in layout.tokens)
    dkernel, place = (dkernel / copies).astype(head.reduce_dtype), head.dims.index("D")
    dkernel = scatter_sum(dkernel, place, layout.D)
    return _sum(dkernel, tuple(axis for axis in layout.tokens if axis not in layout.D))


def squared_error(x_BTO: Array, targets_BTO: Array, mask_BT: Array) -> Array:
    """Returns the mean squared error of each vector, summed over the vectors that count.

    Args:
        x_BTO: predictions; (B, O) if there is one vector per sequence.
        targets_BTO: targets of the same shape.
        mask_BT: which vectors count; (B,) if there is one vector per sequence.
    """
    chex.assert_equal_shape([x_BTO, targets_BTO])
    chex.assert_shape(mask_BT, targets_BTO.shape[:-1])
    return jnp.sum(jnp.mean(jnp.square(x_BTO - targets_BTO), axis=-1) * mask_BT)


def _cut(x: Array, num_chunks: int, size: int) -> Array:
    """Zero-pads (S, ...) and reshapes it to (num_chunks, size, ...)."""
    padding = [(0, num_chunks * size - x.shape[0]), *((0, 0),) * (x.ndim - 1)]
    return jnp.pad(x, padding).reshape(num_chunks, size, *x.shape[1:])
