"""Groups of parameters with a learning rate or a weight decay of their own."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxllm.errors import UserError, did_you_mean
from jaxllm.lora.attach import matches
from jaxllm.lora.config import LoraConfig
from jaxllm.lora.parts import partition
from jaxllm.models import Model
from jaxllm.params import Params, map_parameters, unstack_name

from .config import GroupConfig


def scale_groups(
    groups: Sequence[GroupConfig], model: Model, lora: LoraConfig | None
) -> optax.GradientTransformation:
    """Multiplies updates by the rate of their group, as the last step of an optimizer.

    That is the same as another learning rate, also for decoupled weight decay.

    Args:
        groups: of several that match a parameter, the first counts.
        model: may be abstract.
        lora: of the run, which leaves parameters out.

    Raises:
        UserError: a pattern matches no parameter that is trained; names all such patterns.
    """
    check_patterns(groups, model, lora)
    rates = by_layer(model, lora, lambda name: rate_of(name, groups))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        scaled = jax.tree.map(
            lambda x, rate: (x * jnp.asarray(rate, jnp.float32)).astype(x.dtype), updates, rates
        )
        return scaled, state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def add_decay(decays: Params) -> optax.GradientTransformation:
    """Adds each parameter times its decay to the updates: decoupled weight decay by group.

    `decays` has the form of the parameters; those that another optimizer has are left out.
    """

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        own = masked_like(updates, decays)
        added = jax.tree.map(
            lambda x, p, decay: x + (jnp.asarray(decay, jnp.float32) * p).astype(x.dtype),
            *(updates, params, own),
        )
        return added, state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def masked_like(updates: Any, tree: Params) -> Any:
    """Returns a tree like the parameters without those that another optimizer has."""
    is_left_out = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    return jax.tree.map(
        lambda update, own: update if is_left_out(update) else own,
        updates,
        tree,
        is_leaf=is_left_out,
    )


def rate_of(name: str, groups: Sequence[GroupConfig]) -> float:
    """Returns the rate of a parameter, as a multiple of the schedule's."""
    return next((group.rate for group in groups if _matches(name, group.params)), 1.0)


def decay_of(name: str, groups: Sequence[GroupConfig], usual: float) -> float:
    """Returns the weight decay of a parameter; `usual` is that of one in no group."""
    own = next((group.weight_decay for group in groups if _matches(name, group.params)), None)
    return usual if own is None else own


def by_layer(model: Model, lora: LoraConfig | None, number: Callable[[str], float]) -> Params:
    """Returns a number for each trained parameter by its name; of stacked layers, one for each."""

    def find(name: str, variable: nnx.Variable) -> np.ndarray:
        own = [number(one) for one, _ in unstack_name(name)]
        if len(set(own)) == 1:
            return np.array(own[0], np.float32)
        rest = len(variable.get_value().shape) - 1
        return np.array(own, np.float32).reshape(-1, *(1,) * rest)

    return partition(map_parameters(model, find), lora)[0]


def check_patterns(groups: Sequence[GroupConfig], model: Model, lora: LoraConfig | None) -> None:
    """Raises UserError for each pattern that matches no parameter that is trained."""
    trained = partition(map_parameters(model, lambda name, _: name), lora)[0]
    names = [one for name in jax.tree.leaves(trained) for one, _ in unstack_name(name)]
    ends = sorted({name.rpartition(".")[0].rpartition(".")[2] for name in names})
    problems = [
        f"optimizer.groups: {pattern!r} matches no parameter that is trained; there are "
        f"{', '.join(ends)}{did_you_mean(pattern, ends)}"
        for group in groups
        for pattern in group.params
        if not any(_matches(name, [pattern]) for name in names)
    ]
    if problems:
        raise UserError("\n".join(problems))


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern matches a parameter, its module, or a module around it."""
    parts = name.split(".")
    around = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(matches(one, pattern) for one in around for pattern in patterns)
