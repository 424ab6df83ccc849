"""Factors that a model already has, such as those of an adapter that is trained on."""

import math

from jax import Array

from jaxllm.errors import UserError
from jaxllm.models import Model
from jaxllm.params import named_parameters

from .attach import FACTORS, find_targets, projections, without_factors
from .config import LoraConfig


def given_factors(model: Model) -> dict[str, Array]:
    """Returns the factors of a model by name; empty for a model without any."""
    return {
        name: variable.get_value()
        for name, variable in named_parameters(model).items()
        if name.endswith(FACTORS)
    }


def base_of(model: Model) -> Model:
    """Returns a model without its factors, with the same origin."""
    base = without_factors(model)
    base.origin = model.origin
    return base


def check_factors(model: Model, lora: LoraConfig) -> None:
    """Raises UserError unless the factors of a model are those that a config describes.

    Lists every difference. Their dropout may differ.
    """
    own = {name: one.lora for name, one in projections(model).items() if one.lora is not None}
    wanted, prefix = set(find_targets(base_of(model), lora)), "optimizer.lora."
    ranks = sorted({factors.a.shape[-1] for factors in own.values()})
    scales = sorted({factors.scale for factors in own.values()})
    problems = []
    if missing := sorted(wanted - own.keys()):
        problems.append(f"{prefix}targets match {', '.join(missing)}, which it does not adapt")
    if more := sorted(own.keys() - wanted):
        problems.append(f"{prefix}targets do not match {', '.join(more)}, which it adapts")
    if ranks and ranks != [lora.rank]:
        problems.append(f"{prefix}rank={lora.rank}, but it has {', '.join(map(str, ranks))}")
    if any(not math.isclose(scale, lora.scale, rel_tol=1e-6) for scale in scales):
        shown = ", ".join(f"{scale:g}" for scale in scales)
        problems.append(
            f"{prefix}alpha={lora.alpha:g} and rslora={lora.rslora} scale by {lora.scale:g}, but "
            f"it scales by {shown}"
        )
    if problems:
        raise UserError("\n".join(f"the adapter to start from: {one}" for one in problems))
