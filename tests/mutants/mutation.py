"""Mutations as data: where a bug applies, what it does, and where parity must find it."""

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatchcase
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxllm.config import DecoderConfig
from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.models.decoder import Decoder
from jaxllm.params import named_parameters, with_arrays

from .features import Feature, always

# Levels, from causes to effects.
FORWARD = ("config", "weights", "logits", "layers")
TRAINING = ("gradients", "step", "curve")
GENERATION = ("generate",)

# The place that each level must name for a bug: one or several patterns of JAX paths. For rows of
# parameters, the path is followed by the quantity, as in `final_norm update`.
Signs = Mapping[str, str | tuple[str, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mutation:
    """One bug in the JAX model, in a function of jaxllm, or in the arguments of a comparison.

    If several levels must find the bug, each is tried without the levels before it.
    """

    name: str
    signs: Callable[[DecoderConfig], Signs]
    applies: Feature = always
    break_model: Callable[[Decoder], Decoder] = lambda model: model
    patch: Callable[[DecoderConfig], AbstractContextManager[Any]] = lambda config: nullcontext()
    inputs: Callable[[np.ndarray], Inputs] = Inputs.of
    options: Callable[[Decoder], dict[str, Any]] = lambda model: {}  # further options of `compare`

    def is_named(self, config: DecoderConfig, level: str, name: str) -> bool:
        """Whether the place named by a level is the wrong one."""
        wanted = self.signs(config).get(level, ())
        patterns = (wanted,) if isinstance(wanted, str) else wanted
        return any(fnmatchcase(name, pattern) for pattern in patterns)


def left_padded(tokens_BT: np.ndarray) -> Inputs:
    """Returns inputs in which the first quarter of every row is padding."""
    mask_BT = np.ones(tokens_BT.shape, np.int32)
    mask_BT[:, : tokens_BT.shape[1] // 4] = 0
    return Inputs(tokens_BT, target_mask=mask_BT)


def arrays_of(model: Decoder) -> dict[str, jax.Array]:
    return {name: variable.get_value() for name, variable in named_parameters(model).items()}


def copy_of(model: Decoder) -> Decoder:
    """Returns a copy of the model whose modules can be changed."""
    return nnx.merge(*nnx.split(model))


def with_changed(model: Decoder, changed: Mapping[str, jax.Array]) -> Decoder:
    """Returns the model with some parameters, by dotted names, replaced."""
    return with_arrays(model, {**arrays_of(model), **changed})
