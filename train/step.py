"""Optimizer steps: jitted functions from state and batch to new state and metrics."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxllm.lora.attach import set_keys
from jaxllm.lora.parts import join, partition
from jaxllm.models import Model
from jaxllm.params import Params, map_parameters, parameter_shardings, split
from jaxllm.sharding import constrain

from .config import TrainConfig
from .data import Data, MixtureConfig, PreferencesConfig
from .objective import Batch, Loss
from .optimizers.average import averaged
from .optimizers.group_norms import group_norms
from .optimizers.optimizer import make_optimizer, optimizer_shardings
from .optimizers.schedule import make_schedule
from .preference.dpo import find_objective
from .preference.reference import reference_params, with_reference

SHARE = "share/"  # metrics that begin so: the share of the targets that a source has in a batch
NO_PARAMS: Params = {}


class TrainState(NamedTuple):
    """The state that a training step updates."""

    params: Params  # those that are trained
    optimizer: optax.OptState
    step: Array  # number of steps taken
    frozen: Params = NO_PARAMS  # those of a base that LoRA leaves as they are
    reference: Params = NO_PARAMS  # those of DPO's reference that are trained, as they were

    @property
    def weights(self) -> Params:
        """All parameters of the model."""
        return join(self.params, self.frozen)

    @property
    def evaluated(self) -> Params:
        """All parameters to evaluate: the moving average of those that are trained, if kept."""
        return join(averaged(self.optimizer, self.params), self.frozen)


Refer = Callable[[TrainState, Batch], Batch]


class Steps(NamedTuple):
    """The jitted functions of a run. `init` and `train` donate their first argument.

    `init` takes all parameters, of which `TrainState` has two parts; so does `evaluate`.
    """

    init: Callable[[Params], TrainState]
    train: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]
    # The summed loss and the number of targets; of a mixture, those of each source.
    evaluate: Callable[[Params, Batch], tuple[Array, Array]]
    # The reference's log-likelihoods of a batch of preferences, float32 (B, 2).
    refer: Callable[[TrainState, Batch], Array]
    abstract_state: TrainState  # shapes, dtypes and shardings, for restoring a checkpoint


def make_steps(config: TrainConfig, model: Model, mesh: Mesh) -> Steps:
    """Builds the jitted functions that train `model` as `config` says.

    Args:
        config: the run.
        model: may be abstract: only its structure is used.
        mesh: determines the shardings of the state.
    """
    (bind, weights), lora = split(model), config.optimizer.lora
    objective = find_objective(model, config.data)
    optimizer = make_optimizer(config.optimizer, config.steps, model, config.seed)
    schedule = make_schedule(config.optimizer, config.steps)
    state_shardings = _state_shardings(optimizer, model, config, mesh)

    refer, loss = make_losses(config, model)

    def init(weights: Params) -> TrainState:
        params, frozen = partition(weights, lora)
        reference = jax.tree.map(jnp.copy, reference_params(params, config))
        step = jnp.zeros((), jnp.int32)
        return TrainState(params, optimizer.init(params), step, frozen, reference)

    def train(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        (total, (fullest, by_source_S, sums)), grads = accumulate(
            jax.value_and_grad(functools.partial(loss, state), has_aux=True),
            *(state.params, batch, config.accumulate, key),
        )
        targets = jnp.maximum(jnp.sum(batch["mask"]), 1)
        grads = jax.tree.map(lambda grad: grad / targets, grads)
        updates, moments = optimizer.update(grads, state.optimizer, state.params)
        metrics = {
            "loss": total / targets,
            "grad_norm": optax.tree.norm(grads),
            **group_norms(grads),
            "learning_rate": schedule(state.step),
        }
        load = None if fullest is None else fullest / config.accumulate
        metrics |= _given(bad_step=optax.tree.get(moments, "is_bad"), expert_load=load)
        metrics |= source_metrics(config.data, by_source_S, batch)
        metrics |= {name: value / targets for name, value in sums.items()}
        params = optax.apply_updates(state.params, updates)
        return state._replace(params=params, optimizer=moments, step=state.step + 1), metrics

    def evaluate(weights: Params, batch: Batch) -> tuple[Array, Array]:
        plain = dataclasses.replace(config.loss, z_loss=0.0)
        return sums_by_source(objective.loss(bind(weights), batch, plain, None), batch)

    return Steps(
        jax.jit(init, donate_argnums=0, out_shardings=state_shardings),
        jax.jit(train, donate_argnums=0, out_shardings=(state_shardings, state_shardings.step)),
        jax.jit(evaluate, out_shardings=state_shardings.step),
        jax.jit(lambda *given: refer(*given)["reference"], out_shardings=state_shardings.step),
        _placed(jax.eval_shape(init, weights), state_shardings),
    )


def make_losses(config: TrainConfig, model: Model) -> tuple[Refer, Callable[..., Any]]:
    """Returns two functions of a state.

    The first adds the reference's log-likelihoods to a batch of preferences. The second takes also
    the parameters that are trained, a batch and a key for dropout, and returns the summed loss;
    and the expert load, the losses of sources and other sums.
    """
    bind, _ = split(model)
    objective = find_objective(model, config.data)

    def refer(state: TrainState, batch: Batch) -> Batch:
        if not isinstance(config.data, PreferencesConfig):
            return batch
        return with_reference(bind, state.weights, state.reference, batch, config.loss)

    def loss(
        state: TrainState, params: Params, batch: Batch, key: Array | None
    ) -> tuple[Array, tuple]:
        batch = refer(state, batch)
        own = set_keys(bind(join(params, state.frozen)), key)
        total, balance, by_source_S, sums = objective.loss(own, batch, config.loss, key)
        auxiliary = balance.aux_loss * jnp.sum(batch["mask"])
        return total + auxiliary, (balance.fullest, by_source_S, sums or {})

    return refer, loss


def sums_by_source(loss: Loss, batch: Batch) -> tuple[Array, Array]:
    """Returns the summed loss and the number of targets: of each source if there are several."""
    if loss.by_source_S is None:
        return loss.total, jnp.sum(batch["mask"])
    return loss.by_source_S, targets_by_source(batch)


def source_metrics(data: Data, by_source_S: Array | None, batch: Batch) -> dict[str, Array]:
    """Returns the loss per target of each source of a mixture, and its share of the targets."""
    if by_source_S is None:
        return {}
    assert isinstance(data, MixtureConfig), "only its rows name their source"
    targets_S = targets_by_source(batch)
    loss_S = by_source_S / jnp.maximum(targets_S, 1)
    share_S = targets_S / jnp.maximum(targets_S.sum(), 1)
    names = enumerate(data.mixture)
    return {
        metric: values[source]
        for source, name in names
        for metric, values in {f"loss/{name}": loss_S, f"{SHARE}{name}": share_S}.items()
    }


def targets_by_source(batch: Batch) -> Array:
    """Counts the targets of each source of a mixture, S."""
    return jnp.einsum("BS,B->S", batch["sources"].astype(jnp.float32), batch["mask"].sum(1))


def _placed(shapes: TrainState, shardings: TrainState) -> TrainState:
    """Returns an abstract state with its shardings."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def _given(**metrics: Array | None) -> dict[str, Array]:
    """Returns the metrics that are not None."""
    return {name: value for name, value in metrics.items() if value is not None}


def _state_shardings(
    optimizer: optax.GradientTransformation, model: Model, config: TrainConfig, mesh: Mesh
) -> TrainState:
    """Returns the shardings of the state of a run."""
    lora = config.optimizer.lora
    by_name = parameter_shardings(model, mesh)
    placed, frozen = partition(map_parameters(model, lambda name, _: by_name[name]), lora)
    params, _ = partition(split(model)[1], lora)
    moments = optimizer_shardings(optimizer, params, model, mesh)
    replicated: Any = NamedSharding(mesh, PartitionSpec())
    reference = reference_params(placed, config)
    return TrainState(placed, moments, replicated, frozen, reference)


def accumulate(
    value_and_grad: Callable[[Params, Batch, Array | None], tuple[Any, Params]],
    params: Params,
    batch: Batch,
    microbatches: int,
    key: Array | None = None,
) -> tuple[Any, Params]:
    """Computes the summed loss and its gradient by gradient accumulation, in float32.

    Losses are summed, not averaged, so that every target has the same weight however many targets
    of each microbatch count. Each microbatch has its own dropout key.

    Args:
        value_and_grad: returns a summed loss, or a tree of sums, and the gradient for params, batch
            and key.
        params: the parameters.
        batch: arrays (B, ...); B must be divisible by `microbatches`.
        microbatches: the number of parts; 1 calls `value_and_grad` on the whole batch.
        key: split into one key per microbatch; None disables dropout.
    """
    if microbatches == 1:
        return value_and_grad(params, batch, key)
    # Strided, so that every microbatch takes rows from each device's shard of the batch.
    split_batch = {
        name: constrain(
            x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), ".B" + "." * (x.ndim - 1)
        )
        for name, x in batch.items()
    }

    def add(
        sums: tuple[Any, Params], microbatch: tuple[Batch, Array | None]
    ) -> tuple[tuple[Any, Params], None]:
        return jax.tree.map(jnp.add, sums, value_and_grad(params, *microbatch)), None

    keys = None if key is None else jax.random.split(key, microbatches)
    first = jax.tree.map(lambda x: x[0], (split_batch, keys))
    shapes = jax.eval_shape(value_and_grad, params, *first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
    sums, _ = lax.scan(add, zeros, (split_batch, keys))
    return sums
