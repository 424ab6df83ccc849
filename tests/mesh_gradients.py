"""The loss of a model and all of its gradients, on one device and on a mesh."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tiny import TINY, relative_l2

from jaxllm.models import Model
from jaxllm.params import map_parameters, parameter_shardings, split
from jaxllm.train.data.placement import on_mesh
from jaxllm.train.loss import LossConfig
from jaxllm.train.objective import next_token_loss


def random_batch(rows: int, length: int) -> dict[str, np.ndarray]:
    """Random tokens, of which some count."""
    rng = np.random.default_rng(0)
    return {
        "tokens": rng.integers(0, TINY.vocab_size, (rows, length + 1)),
        "mask": rng.random((rows, length)) < 0.6,
    }


def on_one(model: Model, batch: dict[str, np.ndarray]) -> tuple[Any, Any]:
    """Returns the loss and the gradients by one device."""
    return jax.jit(_loss_and_gradients(model))(split(model)[1], batch)


def on_devices(
    model: Model, batch: dict[str, np.ndarray], mesh: Mesh
) -> tuple[tuple[Any, Any], jax.stages.Compiled]:
    """Returns the loss and the gradients by a mesh, and its program."""
    with jax.set_mesh(mesh):
        shardings = parameter_shardings(model, mesh)
        places = map_parameters(model, lambda name, _: shardings[name])
        rows = len(batch["tokens"])
        given = jax.device_put(split(model)[1], places), on_mesh(batch, mesh, rows)
        compiled = jax.jit(_loss_and_gradients(model)).lower(*given).compile()
        return compiled(*given), compiled


def worst_error(found: Any, expected: Any) -> float:
    """Returns the largest relative L2 error of the loss and the gradients."""
    leaves = map(jax.tree.leaves, (found, expected))
    return max(relative_l2(ours, theirs) for ours, theirs in zip(*leaves, strict=True))


def _loss_and_gradients(model: Model) -> Any:
    bind, _ = split(model)

    def loss(params: Any, batch: Any) -> Any:
        return next_token_loss(bind(params), batch, LossConfig(chunk_tokens=512))[0]

    return jax.value_and_grad(loss)
