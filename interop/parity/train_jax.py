"""Our side of training: the loss, its gradient and the steps of an optimizer."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxllm.models import with_scanned_layers
from jaxllm.models.decoder import Decoder
from jaxllm.params import Params, named_parameters, split

from .recipe import Training, as_tuple
from .trace_jax import PRECISION


def train_model(
    model: Decoder, batches: Sequence[np.ndarray], optimizer: optax.GradientTransformation
) -> Training:
    """A step on each batch of tokens, BT; the model stays as it is.

    Raises ValueError if the optimizer has no moments `mu` and `nu`, as optax's Adam has.
    """
    bind, params = split(model)

    @jax.jit
    def step(params: Params, state: Any, tokens_BT: Array) -> tuple:
        loss, gradient = jax.value_and_grad(mean_loss)(params, bind, tokens_BT)
        update, state = optimizer.update(gradient, state, params)
        return loss, gradient, update, optax.apply_updates(params, update), state

    with jax.default_matmul_precision(PRECISION):
        state = optimizer.init(params)
        losses = []
        first: dict[str, Any] = {}
        for tokens_BT in batches:
            loss, gradient, update, after, state = step(params, state, jnp.asarray(tokens_BT))
            losses.append(loss)
            if not first:
                # As parameters are updated, rounding included, which is all that PyTorch shows.
                update = jax.tree.map(jnp.subtract, after, params)
                first = {"gradient": gradient, **_moments(state), "update": update}
            params = after
    norm = float(optax.tree.norm(first["gradient"]))
    return Training(as_tuple(losses), norm, {w: _named(bind, t) for w, t in first.items()})


def mean_loss(params: Params, bind: Callable[[Params], Decoder], tokens_BT: Array) -> Array:
    """The mean negative log-likelihood, in nats, of each token but the first given those before.

    Without the auxiliary loss of experts: both sides are given the same loss.
    """
    logits_BTV = bind(params)(tokens_BT).logits[:, :-1]
    log_probs_BTV = jax.nn.log_softmax(logits_BTV.astype(jnp.float32))
    return -jnp.take_along_axis(log_probs_BTV, tokens_BT[:, 1:, None], axis=-1).mean()


def _moments(state: Any) -> dict[str, Any]:
    found = {"m": "mu", "v": "nu"}
    trees = {ours: optax.tree.get(state, name) for ours, name in found.items()}
    if missing := [found[name] for name, tree in trees.items() if tree is None]:
        raise ValueError(f"the optimizer's state has no {' and no '.join(missing)}")
    return trees


def _named(bind: Callable[[Params], Decoder], tree: Params) -> dict[str, np.ndarray]:
    """What is laid out as the parameters are, by their names in single layers."""
    listed = with_scanned_layers(bind(tree), False)
    return {name: np.asarray(v.get_value()) for name, v in named_parameters(listed).items()}
