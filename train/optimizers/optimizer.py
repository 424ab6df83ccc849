"""Optimizers by name, and how their state is sharded; `schedule` has the learning rate."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxllm.lora.attach import FACTORS
from jaxllm.lora.parts import partition
from jaxllm.models import Model
from jaxllm.params import Params, dim_letters, map_parameters, named_parameters
from jaxllm.sharding import named_sharding

from .adafactor import scale_by_adafactor
from .average import with_average
from .bad_steps import with_guard
from .config import BadStepsConfig, OptimizerConfig
from .groups import add_decay, by_layer, decay_of, masked_like, scale_groups
from .matrices import shape_of
from .muon import scale_by_muon
from .precision import with_master, with_stochastic_rounding
from .schedule import make_schedule


def make_optimizer(
    config: OptimizerConfig, steps: int, model: Model, seed: int = 0
) -> optax.GradientTransformation:
    """Returns the Optax optimizer for the parameters of `model` that are trained.

    Args:
        config: the optimizer.
        steps: the length of the run, for the schedule.
        model: may be abstract.
        seed: for stochastic rounding.
    """
    optimizer = _RULES[config.name](config, make_schedule(config, steps), model)
    clipping = []
    if config.clip_value is not None:
        clipping.append(optax.clip(config.clip_value))
    if config.clip_norm is not None:
        clipping.append(optax.clip_by_global_norm(config.clip_norm))
    scaling = [scale_groups(config.groups, model, config.lora)] if config.groups else []
    optimizer = optax.chain(*clipping, optimizer, *scaling)
    if config.precision == "bfloat16_master":
        optimizer = with_master(optimizer)
    if config.precision == "bfloat16_stochastic":
        optimizer = with_stochastic_rounding(optimizer, seed)
    if config.ema is not None:
        optimizer = with_average(optimizer, config.ema)
    if config.bad_steps != BadStepsConfig():
        optimizer = with_guard(optimizer, config.bad_steps.spike)
    return optimizer


def _adamw(
    config: OptimizerConfig, rate: optax.Schedule, model: Model
) -> optax.GradientTransformation:
    return optax.chain(
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        _decay(config, model),
        optax.scale_by_learning_rate(rate),
    )


def _lion(
    config: OptimizerConfig, rate: optax.Schedule, model: Model
) -> optax.GradientTransformation:
    """Lion (Chen et al., 2023)."""
    return optax.chain(
        optax.scale_by_lion(config.b1, config.b2),
        _decay(config, model),
        optax.scale_by_learning_rate(rate),
    )


def _muon(
    config: OptimizerConfig, rate: optax.Schedule, model: Model
) -> optax.GradientTransformation:
    """Muon for the matrices of layers; AdamW for embeddings, heads, norms and biases."""
    labels = _map_trained(config, model, _muon_label)
    shapes = _map_trained(config, model, lambda name, variable: shape_of(variable))
    mine = jax.tree.map(
        lambda label, shape: shape if label == "muon" else optax.MaskedNode(), labels, shapes
    )
    muon = optax.chain(
        scale_by_muon(mine, config.momentum, config.nesterov),
        _decay(config, model),
        optax.scale_by_learning_rate(rate),
    )
    return optax.partition({"muon": muon, "adamw": _adamw(config, rate, model)}, labels)


def _muon_label(name: str, variable: nnx.Variable) -> str:
    is_hidden = "layers." in name and name.endswith((".kernel", *FACTORS))
    return "muon" if is_hidden and shape_of(variable).is_matrix else "adamw"


def _adafactor(
    config: OptimizerConfig, rate: optax.Schedule, model: Model
) -> optax.GradientTransformation:
    shapes = _map_trained(config, model, lambda name, variable: shape_of(variable))
    return optax.chain(
        scale_by_adafactor(shapes),
        _decay(config, model),
        optax.scale_by_learning_rate(rate),
    )


def _sgd(
    config: OptimizerConfig, rate: optax.Schedule, model: Model
) -> optax.GradientTransformation:
    return optax.chain(
        _decay(config, model),
        optax.sgd(rate, config.momentum or None, config.nesterov),
    )


_RULES = {"adamw": _adamw, "lion": _lion, "muon": _muon, "adafactor": _adafactor, "sgd": _sgd}


def _map_trained(
    config: OptimizerConfig, model: Model, leaf: Callable[[str, nnx.Variable], Any]
) -> Params:
    """Returns `leaf(name, variable)` of every parameter that is trained, nested as they are."""
    return partition(map_parameters(model, leaf), config.lora)[0]


def _decay(config: OptimizerConfig, model: Model) -> optax.GradientTransformation:
    """Returns the step that adds weight decay, for all or some of the parameters."""
    if any(group.weight_decay is not None for group in config.groups):
        usual = lambda name: config.weight_decay if is_decayed(config, name) else 0.0  # noqa: E731
        own = lambda name: decay_of(name, config.groups, usual(name))  # noqa: E731
        return add_decay(by_layer(model, config.lora, own))
    decayed = _map_trained(config, model, lambda name, _: is_decayed(config, name))
    return optax.add_decayed_weights(
        config.weight_decay, lambda updates: masked_like(updates, decayed)
    )


def is_decayed(config: OptimizerConfig, name: str) -> bool:
    """Whether weight decay applies to the parameter with this name."""
    # Decided by name. The usual rule in PyTorch, two or more dimensions, does not work here: the
    # scale of a norm has a second dimension if layers are stacked, and a head's bias has N and H.
    return config.decay_all or name.endswith((".kernel", ".embedding", *FACTORS))


def optimizer_shardings(
    optimizer: optax.GradientTransformation, params: Params, model: Model, mesh: Mesh
) -> optax.OptState:
    """Returns the shardings of the optimizer state, by the letters of the parameters.

    What has a parameter's shape takes its letters; sums over rows or columns, those that are left;
    and the rest, such as counts, is replicated.

    Args:
        optimizer: from `make_optimizer`.
        params: the parameters that are trained; may be abstract.
        model: the model that they are of.
        mesh: the devices.
    """
    variables = named_parameters(model)

    def place(path: Any, leaf: Any) -> NamedSharding:
        field, variable = _owner(jax.tree_util.keystr(path, simple=True, separator="."), variables)
        letters = "" if variable is None else _letters(field, variable)
        if len(letters) != len(leaf.shape):
            return NamedSharding(mesh, PartitionSpec())
        return named_sharding(letters, leaf.shape, mesh)

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(optimizer.init, params))


def _owner(path: str, variables: dict[str, nnx.Variable]) -> tuple[str, nnx.Variable | None]:
    """Returns the field and the parameter of a leaf of the state, such as `mu` and the kernel."""
    field, rest = "", path
    while rest and rest not in variables:
        field, _, rest = rest.partition(".")
    return field, variables.get(rest)


def _letters(field: str, variable: nnx.Variable) -> str:
    letters, shape = dim_letters(variable), shape_of(variable)
    left_out = {"rows": shape.columns, "columns": shape.rows}.get(field, ())
    return "".join(letter for i, letter in enumerate(letters) if i not in left_out)
