"""Training in JAX: the loss, its gradients and the steps of an optimizer."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.report.rows import NATS
from jaxllm.models import Model, with_scanned_layers
from jaxllm.params import Params, map_parameters, named_parameters, split, unstack_name
from jaxllm.sharding import to_host

from .jax_trace import PRECISION, call
from .recipe import TrainingRecord, as_tuple


def train_model(
    model: Model,
    batches: Sequence[Inputs],
    optimizer: optax.GradientTransformation,
    constant: Collection[str] = (),
) -> TrainingRecord:
    """Trains a copy of the model, one step on each batch.

    Args:
        model: the JAX model. Not changed.
        batches: the batches.
        optimizer: an optimizer with moments `mu` and `nu`, such as optax's Adam.
        constant: names of parameters that are not trained and not returned.
    """
    bind, params = split(model)
    trained = map_parameters(
        model, lambda name, _: float(any(one not in constant for one, _ in unstack_name(name)))
    )

    @jax.jit
    def step(params: Params, state: Any, given: Mapping[str, Array]) -> tuple:
        loss, gradient = jax.value_and_grad(mean_loss)(params, bind, given)
        gradient = jax.tree.map(jnp.multiply, gradient, trained)
        update, state = optimizer.update(gradient, state, params)
        update = jax.tree.map(jnp.multiply, update, trained)
        return loss, gradient, update, optax.apply_updates(params, update), state

    with jax.default_matmul_precision(PRECISION):
        state = optimizer.init(params)
        losses = []
        first: dict[str, Any] = {}
        for batch in batches:
            given = {name: jnp.asarray(array) for name, array in batch.arrays.items()}
            loss, gradient, update, after, state = step(params, state, given)
            losses.append(loss)
            if not first:
                # The difference of the parameters, rounding included, as it is for PyTorch.
                update = jax.tree.map(jnp.subtract, after, params)
                first = {"gradient": gradient, **_moments(state), "update": update}
            params = after
    del params, state, gradient, update, after
    norm = float(optax.tree.norm(first["gradient"]))
    kept = {}
    for what in tuple(first):
        named = _named(bind, first.pop(what))  # popped: each tree is as large as the model
        kept[what] = {name: array for name, array in named.items() if name not in constant}
    return TrainingRecord(as_tuple(losses), norm, kept)


def check_moments(optimizer: optax.GradientTransformation, model: Model) -> None:
    """Raises ValueError if the optimizer has no moments `mu` and `nu`."""
    _moments(jax.eval_shape(optimizer.init, split(model)[1]))


def loss_unit(batch: Inputs) -> str:
    """Returns the unit of `mean_loss`, as `jaxllm.train` calls it."""
    return NATS if batch.labels is None else "mean squared error"


def mean_loss(params: Params, bind: Callable[[Params], Model], given: Mapping[str, Array]) -> Array:
    """Returns the mean next-token loss in nats or, for vectors, the mean squared error.

    Padding is not counted. The auxiliary loss of experts is left out, as it is for the reference.
    """
    out = call(bind(params), given).logits.astype(jnp.float32)
    if "labels" in given:
        return jnp.square(out - given["labels"]).mean()
    tokens_BT = given["target"]
    log_probs_BTV = jax.nn.log_softmax(out[:, :-1])
    found_BT = -jnp.take_along_axis(log_probs_BTV, tokens_BT[:, 1:, None], axis=-1)[..., 0]
    is_token_BT = given.get("target_mask", jnp.ones_like(tokens_BT)) != 0
    counts_BT = is_token_BT[:, 1:] & is_token_BT[:, :-1]  # neither predicts nor is padding
    return jnp.sum(found_BT, where=counts_BT) / counts_BT.sum()


def _moments(state: Any) -> dict[str, Any]:
    found = {"m": "mu", "v": "nu"}
    trees = {ours: optax.tree.get(state, name) for ours, name in found.items()}
    if missing := [found[name] for name, tree in trees.items() if tree is None]:
        raise ValueError(
            f"the optimizer's state has no {' and no '.join(missing)}: give an optimizer with "
            "Adam's moments, such as optax.adamw"
        )
    return trees


def _named(bind: Callable[[Params], Model], tree: Params) -> dict[str, np.ndarray]:
    """Returns the arrays of a tree of parameters, gradients or moments by unstacked names."""
    listed = with_scanned_layers(bind(tree), False)
    return {name: to_host(v.get_value()) for name, v in named_parameters(listed).items()}
