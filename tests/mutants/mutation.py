"""A bug as data: where it applies, what it does and, for the tests alone, where it is."""

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

# From causes to effects.
FORWARD = ("config", "weights", "logits", "layers")
TRAINING = ("gradients", "step", "curve")
GENERATION = ("generate",)

# Of each level that must find a bug, the step that it must name: a pattern of our paths or some of
# them, and of what belongs to a parameter, of what it is as well: `final_norm update`.
Signs = Mapping[str, str | tuple[str, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mutation:
    """One bug in our model, in a function of jaxllm, or in what a comparison is given.

    With more than one sign, the level of each is tried without those before it.
    """

    name: str
    signs: Callable[[DecoderConfig], Signs]
    applies: Feature = always
    break_model: Callable[[Decoder], Decoder] = lambda model: model
    patch: Callable[[DecoderConfig], AbstractContextManager[Any]] = lambda config: nullcontext()
    inputs: Callable[[np.ndarray], Inputs] = Inputs.of
    options: Callable[[Decoder], dict[str, Any]] = lambda model: {}  # of compare

    def is_named(self, config: DecoderConfig, level: str, name: str) -> bool:
        """Whether a step that a level names is the one that is wrong."""
        wanted = self.signs(config).get(level, ())
        patterns = (wanted,) if isinstance(wanted, str) else wanted
        return any(fnmatchcase(name, pattern) for pattern in patterns)


def left_padded(tokens_BT: np.ndarray) -> Inputs:
    """The first quarter of every row is padding."""
    mask_BT = np.ones(tokens_BT.shape, np.int32)
    mask_BT[:, : tokens_BT.shape[1] // 4] = 0
    return Inputs(tokens_BT, target_mask=mask_BT)


def arrays_of(model: Decoder) -> dict[str, jax.Array]:
    return {name: variable.get_value() for name, variable in named_parameters(model).items()}


def copy_of(model: Decoder) -> Decoder:
    """The same numbers in modules of its own."""
    return nnx.merge(*nnx.split(model))


def with_changed(model: Decoder, changed: Mapping[str, jax.Array]) -> Decoder:
    """The model with some of its parameters, by dotted names, replaced."""
    return with_arrays(model, {**arrays_of(model), **changed})
