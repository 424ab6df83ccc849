"""Weights in the form that decodes fastest: layers one by one, which no loop has to slice."""

import functools

import jax
from flax import nnx

from jaxllm.models import Model, with_scanned_layers


def decoding_weights(model: Model) -> tuple[nnx.GraphDef, dict]:
    """Splits a model with layers one by one into its structure and its arrays.

    Scanned layers are unstacked by a program that is compiled once. Nothing but the caller holds
    the new arrays, so they are freed with the caller's last reference.
    """
    graphdef, state = nnx.split(model)
    params = nnx.to_pure_dict(state)
    is_stacked = any(":" in str(part) for path, _ in nnx.to_flat_state(state) for part in path)
    return _unstack(graphdef, params) if is_stacked else (graphdef, params)


@functools.partial(jax.jit, static_argnums=0)
def _unstack(graphdef: nnx.GraphDef, params: dict) -> tuple[nnx.GraphDef, dict]:
    graphdef, state = nnx.split(with_scanned_layers(nnx.merge(graphdef, nnx.State(params)), False))
    return graphdef, nnx.to_pure_dict(state)
