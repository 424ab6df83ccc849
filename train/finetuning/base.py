"""The base of an adapter: the parameters that a run with LoRA starts from and leaves frozen."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jaxllm.checkpointing.digests import digest_arrays, digest_json
from jaxllm.config import Config
from jaxllm.lora.attach import draw_factors, is_trained
from jaxllm.lora.config import LoraConfig
from jaxllm.models import Model
from jaxllm.params import (
    Params,
    initialize,
    map_parameters,
    named_parameters,
    parameter_shardings,
    split,
)
from jaxllm.train.config import ConfigError


def starting_params(
    model: Model, lora: LoraConfig, mesh: Mesh, seed: int, config: Config | None
) -> Params:
    """Returns all parameters that a run with LoRA starts from; the trained ones are float32.

    Args:
        model: from `add_lora`, with the weights of its base unless `config` is given. Factors with
            numbers are kept.
        lora: which parameters are trained.
        mesh: where the factors are created.
        seed: of the factors, and of a random base.
        config: that of a base with random weights, or None.
    """
    named = {name: variable.get_value() for name, variable in named_parameters(model).items()}
    if config is not None:
        base = named_parameters(initialize(config, mesh, seed))
        named |= {name: variable.get_value() for name, variable in base.items()}
    placed = parameter_shardings(model, mesh)
    shapes = jax.eval_shape(lambda: draw_factors(model, seed))
    draw = jax.jit(
        lambda: draw_factors(model, seed), out_shardings={name: placed[name] for name in shapes}
    )
    drawn = draw()
    named |= {x: drawn[x] for x in drawn if isinstance(named[x], jax.ShapeDtypeStruct)}
    full = {name for name in named if is_trained(name, lora)}
    named |= {name: named[name].astype(jnp.float32) for name in full}
    return map_parameters(model, lambda name, _: named[name])


def with_wide_parameters(model: Model, lora: LoraConfig) -> Model:
    """Returns a model from `add_lora` whose trained parameters are float32.

    Those trained in full have the dtype of the base before.
    """

    def widen(name: str, variable: nnx.Variable) -> Any:
        value = variable.get_value()
        if not is_trained(name, lora) or value.dtype == jnp.float32:
            return value
        if isinstance(value, jax.Array):
            return value.astype(jnp.float32)
        return jax.ShapeDtypeStruct(value.shape, jnp.float32)

    bind, _ = split(model)
    return bind(map_parameters(model, widen))


def describe_base(frozen: Params, start: str | None) -> dict[str, Any]:
    """Returns what a step of an adapter says about its base: where it was, and its digest."""
    leaves = nnx.traversals.flatten_mapping(frozen).items()
    named = {".".join(map(str, path)): leaf for path, leaf in leaves}
    return {"base": start, "digest": digest_json(digest_arrays(named))}


def check_base(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises ConfigError unless an adapter's base is the one that it was trained on."""
    if saved["digest"] != now["digest"]:
        raise ConfigError(
            f"the frozen parameters from {now['base']} are not those that the adapter was trained "
            f"on, which came from {saved['base']}: give that checkpoint as init_from"
        )
