"""What our model computes on the way from tokens to logits."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxllm.models import with_scanned_layers
from jaxllm.models.decoder import Decoder

from .rows import LOGITS

PRECISION = "highest"  # float32 products; by default accelerators round their inputs


def trace_model(
    model: Decoder, tokens_BT: np.ndarray, paths: Sequence[str]
) -> dict[str, np.ndarray]:
    """The output of each module of `model` that `paths` names, and its logits, in float32.

    Raises:
        ValueError: the model has no such module.
    """
    # Not jitted: compiling takes longer the deeper the model, running op by op does not.
    forward = nnx.capture(_opened(model), nnx.Intermediate, method_outputs=nnx.Intermediate)
    with jax.default_matmul_precision(PRECISION):
        out, captured = forward(jnp.asarray(tokens_BT))
    outputs = {
        ".".join(name for name in map(str, path) if name != "__call__"): variable.get_value()[0]
        for path, variable in nnx.to_flat_state(captured)
    }
    if missing := [path for path in paths if path not in outputs]:
        raise ValueError(f"the model has no {', '.join(missing)}")
    # Of what a module returns, the first flows on; the rest is its cache.
    firsts = {path: o[0] if isinstance(o := outputs[path], tuple) else o for path in paths}
    return {path: np.asarray(x, np.float32) for path, x in {**firsts, LOGITS: out.logits}.items()}


def _opened(model: Decoder) -> Decoder:
    """A copy in which every layer is a module of its own, run outside of any transform."""
    unstacked = with_scanned_layers(model, False)
    opened = nnx.merge(*nnx.split(unstacked))
    opened.config = dataclasses.replace(unstacked.config, remat="none")
    return opened
