"""What our model computes on the way from tokens to logits."""

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
from flax import nnx

from jaxllm.models.decoder import Decoder, with_scanned_layers

from .taps import LOGITS

PRECISION = "highest"  # float32 products; by default accelerators round their inputs


def trace_model(model: Decoder, tokens_BT: np.ndarray, paths: Sequence[str]) -> dict:
    """The output of each module of `model` that `paths` names, and its logits, in float32.

    Raises:
        ValueError: the model has no such module.
    """
    graphdef, state = nnx.split(_open(model))
    with jax.default_matmul_precision(PRECISION):
        traced = _run(graphdef, state, jax.numpy.asarray(tokens_BT), tuple(paths))
    return {path: np.asarray(array, np.float32) for path, array in traced.items()}


def _open(model: Decoder) -> Decoder:
    """A copy in which every layer is a module of its own that runs outside of any transform."""
    unstacked = with_scanned_layers(model, False)
    opened = nnx.merge(*nnx.split(unstacked))
    opened.config = dataclasses.replace(unstacked.config, remat="none")
    opened.origin = None  # it would make a new program of every checkpoint
    return opened


@partial(jax.jit, static_argnums=(0, 3))
def _run(
    graphdef: nnx.GraphDef, state: nnx.State, tokens_BT: jax.Array, paths: tuple[str, ...]
) -> dict[str, jax.Array]:
    model = nnx.merge(graphdef, state)
    forward = nnx.capture(model, nnx.Intermediate, method_outputs=nnx.Intermediate)
    out, captured = forward(tokens_BT)
    outputs = {
        ".".join(map(str, path[:-1])): variable.get_value()[0]
        for path, variable in nnx.to_flat_state(captured)
        if path[-1] == "__call__"
    }
    if missing := [path for path in paths if path not in outputs]:
        raise ValueError(f"the model has no {', '.join(missing)}")
    # Of what a module returns, the first flows on; the rest is its cache.
    activations = {
        path: output[0] if isinstance(output := outputs[path], tuple) else output for path in paths
    }
    return {**activations, LOGITS: out.logits}
