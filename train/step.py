"""One optimizer step: a jitted function from state and batch to state and metrics."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxllm.models import Model
from jaxllm.params import Params, map_parameters, parameter_shardings, split
from jaxllm.sharding import constrain

from .config import TrainConfig
from .objective import Batch, get_objective
from .optimizers.adamw import make_optimizer, make_schedule, optimizer_shardings


class TrainState(NamedTuple):
    """Everything that a step changes."""

    params: Params
    optimizer: optax.OptState
    step: Array  # steps taken


class Steps(NamedTuple):
    """The functions of a run, jitted; their state is donated and stays where it is."""

    init: Callable[[Params], TrainState]
    train: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]
    evaluate: Callable[[Params, Batch], tuple[Array, Array]]  # summed loss, number of targets
    abstract_state: TrainState  # shapes, dtypes and places, for restoring


def make_steps(config: TrainConfig, model: Model, mesh: Mesh) -> Steps:
    """The steps of `config` for a model, which may be abstract."""
    bind, params = split(model)
    objective = get_objective(model)
    optimizer = make_optimizer(config.optimizer, config.steps, model)
    schedule = make_schedule(config.optimizer, config.steps)
    by_name = parameter_shardings(model, mesh)
    placed = map_parameters(model, lambda name, _: by_name[name])
    everywhere: Any = NamedSharding(mesh, PartitionSpec())
    state_shardings = TrainState(
        placed, optimizer_shardings(optimizer, params, placed, mesh), everywhere
    )

    def losses(params: Params, batch: Batch, key: Array | None = None) -> tuple[Array, Array]:
        return objective.loss(bind(params), batch, config.loss_chunk, key)

    def loss(params: Params, batch: Batch, key: Array | None) -> Array:
        total, aux_loss = losses(params, batch, key)
        return total + aux_loss * jnp.sum(batch["mask"])

    def init(params: Params) -> TrainState:
        return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    def train(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        total, grads = accumulate(
            jax.value_and_grad(loss),
            *(state.params, batch, config.accumulate, key),
        )
        targets = jnp.maximum(jnp.sum(batch["mask"]), 1)
        grads = jax.tree.map(lambda grad: grad / targets, grads)
        updates, moments = optimizer.update(grads, state.optimizer, state.params)
        metrics = {
            "loss": total / targets,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": schedule(state.step),
        }
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, moments, state.step + 1), metrics

    def evaluate(params: Params, batch: Batch) -> tuple[Array, Array]:
        return losses(params, batch)[0], jnp.sum(batch["mask"])

    return Steps(
        jax.jit(init, donate_argnums=0, out_shardings=state_shardings),
        jax.jit(train, donate_argnums=0, out_shardings=(state_shardings, everywhere)),
        jax.jit(evaluate, out_shardings=everywhere),
        jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            jax.eval_shape(init, params),
            state_shardings,
        ),
    )


def accumulate(
    value_and_grad: Callable[[Params, Batch, Array | None], tuple[Array, Params]],
    params: Params,
    batch: Batch,
    microbatches: int,
    key: Array | None = None,
) -> tuple[Array, Params]:
    """The summed loss and its gradient, over the batch cut into microbatches, in float32.

    Sums, so that every target weighs the same however the masked ones are distributed. Each
    microbatch drops out by a key of its own.
    """
    if microbatches == 1:
        return value_and_grad(params, batch, key)
    # Every microbatch takes rows from each device's part of the batch.
    cut = {
        name: constrain(
            x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), ".B" + "." * (x.ndim - 1)
        )
        for name, x in batch.items()
    }

    def add(
        sums: tuple[Array, Params], own: tuple[Batch, Array | None]
    ) -> tuple[tuple[Array, Params], None]:
        return jax.tree.map(jnp.add, sums, value_and_grad(params, *own)), None

    zeros = jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), params)
    keys = None if key is None else jax.random.split(key, microbatches)
    sums, _ = lax.scan(add, (jnp.zeros((), jnp.float32), zeros), (cut, keys))
    return sums
