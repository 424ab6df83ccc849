"""Our side of training: the loss, its gradient and the steps of an optimizer."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.models import Model, with_scanned_layers
from jaxllm.params import Params, map_parameters, named_parameters, split
from jaxllm.sharding import to_host

from .jax_trace import PRECISION, call
from .recipe import Training, as_tuple


def train_model(
    model: Model,
    batches: Sequence[Inputs],
    optimizer: optax.GradientTransformation,
    constant: Collection[str] = (),
) -> Training:
    """A step on each batch; the model stays as it is.

    So do its parameters that are `constant`, of which nothing is returned.

    Raises ValueError if the optimizer has no moments `mu` and `nu`, as optax's Adam has.
    """
    bind, params = split(model)
    trained = map_parameters(model, lambda name, _: float(name not in constant))

    @jax.jit
    def step(params: Params, state: Any, given: Mapping[str, Array]) -> tuple:
        loss, gradient = jax.value_and_grad(mean_loss)(params, bind, given)
        gradient = jax.tree.map(jnp.multiply, gradient, trained)
        update, state = optimizer.update(gradient, state, params)
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
                # As parameters are updated, rounding included, which is all that PyTorch shows.
                update = jax.tree.map(jnp.subtract, after, params)
                first = {"gradient": gradient, **_moments(state), "update": update}
            params = after
    norm = float(optax.tree.norm(first["gradient"]))
    named = {what: _named(bind, tree) for what, tree in first.items()}
    kept = {
        what: {name: array for name, array in arrays.items() if name not in constant}
        for what, arrays in named.items()
    }
    return Training(as_tuple(losses), norm, kept)


def mean_loss(params: Params, bind: Callable[[Params], Model], given: Mapping[str, Array]) -> Array:
    """The mean negative log-likelihood, in nats, of each token but the first given those before.

    Of vectors, the mean square of what is missing to those that are wanted. Without the auxiliary
    loss of experts: both sides are given the same loss.
    """
    out = call(bind(params), given).logits.astype(jnp.float32)
    if "wanted" in given:
        return jnp.square(out - given["wanted"]).mean()
    tokens_BT = given["target"]
    log_probs_BTV = jax.nn.log_softmax(out[:, :-1])
    found_BT = -jnp.take_along_axis(log_probs_BTV, tokens_BT[:, 1:, None], axis=-1)[..., 0]
    is_token_BT = given.get("target_mask", jnp.ones_like(tokens_BT)) != 0
    counts_BT = is_token_BT[:, 1:] & is_token_BT[:, :-1]  # what padding predicts is nothing
    return jnp.sum(found_BT, where=counts_BT) / counts_BT.sum()


def _moments(state: Any) -> dict[str, Any]:
    found = {"m": "mu", "v": "nu"}
    trees = {ours: optax.tree.get(state, name) for ours, name in found.items()}
    if missing := [found[name] for name, tree in trees.items() if tree is None]:
        raise ValueError(f"the optimizer's state has no {' and no '.join(missing)}")
    return trees


def _named(bind: Callable[[Params], Model], tree: Params) -> dict[str, np.ndarray]:
    """What is laid out as the parameters are, by their names in single layers."""
    listed = with_scanned_layers(bind(tree), False)
    return {name: to_host(v.get_value()) for name, v in named_parameters(listed).items()}
