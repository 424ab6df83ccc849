"""Perplexity: how well a decoder predicts the tokens of documents."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxllm.errors import UserError
from jaxllm.models import Decoder
from jaxllm.params import split
from jaxllm.train.data.batches import Rows
from jaxllm.train.data.placement import on_mesh, own_rows
from jaxllm.train.loss import LossConfig
from jaxllm.train.objective import next_token_loss


class Perplexity(NamedTuple):
    """The mean loss of the tokens of some documents."""

    loss: float  # nats per token
    perplexity: float  # its exponential
    tokens: int  # that were predicted


def measure_perplexity(
    model: Decoder,
    rows: Rows,
    *,
    batch_size: int,
    mesh: Mesh,
    show: Callable[[int], None] = lambda _: None,
) -> Perplexity:
    """Returns the perplexity of a model over all rows, each of which counts by its targets.

    Args:
        model: a decoder, on `mesh`.
        rows: documents in rows, such as `make_rows` returns.
        batch_size: rows at a time.
        mesh: the devices that share the rows of a batch; it is set, as by `jax.set_mesh`.
        show: takes the number of rows that are done, after each batch.

    Raises:
        UserError: there is nothing to predict, or the rows of a batch cannot be divided.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % ways:
        raise UserError(
            f"batch_size={batch_size} is not a multiple of data x fsdp = {ways} devices"
        )
    bind, params = split(model)

    @jax.jit
    def evaluate(params: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
        loss = next_token_loss(bind(params), batch, LossConfig())
        return loss.total, batch["mask"].sum()

    own, total, targets = own_rows(mesh, batch_size), 0.0, 0
    for start in range(0, len(rows), batch_size):
        wanted = np.arange(start, start + batch_size)[own]
        batch = rows.take(np.minimum(wanted, len(rows) - 1))
        batch["mask"] = batch["mask"] & (wanted < len(rows))[:, None]  # each row once
        loss, number = evaluate(params, on_mesh(batch, mesh, batch_size))
        total, targets = total + float(loss), targets + int(number)
        show(min(start + batch_size, len(rows)))
    if not targets:
        raise UserError("the documents have no token to predict: each has a single one, or none")
    mean = total / targets
    return Perplexity(mean, math.exp(min(mean, 700.0)), targets)
