"""A model's parameters as plain pytrees, and where they live on a mesh.

Jitted code takes and returns nested dicts of arrays: they cost the least to dispatch, and they
are what checkpoints hold. A model is bound to them again inside.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from .checkpoint_origin import Origin
from .config import from_dict, to_dict, with_fields
from .layers.stack import layer_range
from .models import AnyModel, Model, build, build_abstract
from .sharding import named_sharding

Params = dict[str, Any]


def split(model: AnyModel) -> tuple[Callable[[Params], AnyModel], Params]:
    """The model as a function of its parameters, and the parameters as a nested dict."""
    graphdef, state = nnx.split(model)
    treedef = jax.tree.structure(state)

    def bind(params: Params) -> AnyModel:
        return nnx.merge(graphdef, jax.tree.unflatten(treedef, jax.tree.leaves(params)))

    return bind, nnx.to_pure_dict(state)


def named_parameters(model: Model) -> dict[str, nnx.Variable]:
    """Every parameter by its dotted name, as in `layers.0:32.attn.q_proj.kernel`."""
    return {
        ".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(nnx.state(model))
    }


def parameter_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Every parameter's shape, by dotted name."""
    return {
        name: tuple(variable.get_value().shape)
        for name, variable in named_parameters(model).items()
    }


def with_arrays(model: AnyModel, arrays: Mapping[str, jax.Array]) -> AnyModel:
    """The model with these arrays as its parameters.

    Raises ValueError unless `arrays` names every parameter, no other, in its shape.
    """
    wanted = parameter_shapes(model)
    given = {name: array.shape for name, array in arrays.items()}
    if wrong := {name for name, _ in wanted.items() ^ given.items()}:
        raise ValueError(f"not the parameters of this model: {', '.join(sorted(wrong))}")
    graphdef, state = nnx.split(model)
    flat = nnx.to_flat_state(state)
    values = [(path, v.replace(arrays[".".join(map(str, path))])) for path, v in flat]
    return nnx.merge(graphdef, nnx.from_flat_state(values))


def unstack_name(name: str) -> list[tuple[str, int | None]]:
    """A parameter's name in each of its layers, and the layer's place in it; itself if not stacked.

    As in `[("layers.0.attn.q_proj.kernel", 0), ("layers.1.attn.q_proj.kernel", 1)]`, of
    `layers.0:2.attn.q_proj.kernel`.
    """
    prefix, _, rest = name.rpartition("layers.")
    label, _, parameter = rest.partition(".")
    if ":" not in label:
        return [(name, None)]
    return [
        (f"{prefix}layers.{layer}.{parameter}", i) for i, layer in enumerate(layer_range(label))
    ]


def stacked_layers(model: Model) -> dict[str, dict[str, range]]:
    """By the path of each list of layers, its arrays' labels and the layers that each one holds.

    As in `{"layers": {"0:32": range(0, 32)}}`, of `layers.0:32.attn.q_proj.kernel`.
    """
    found: dict[str, dict[str, range]] = {}
    for name in named_parameters(model):
        path, is_layer, rest = name.rpartition("layers.")
        if is_layer:
            label = rest.partition(".")[0]
            found.setdefault(path + "layers", {})[label] = layer_range(label)
    return found


def dim_letters(variable: nnx.Variable) -> str:
    """The dimension letters of a parameter; stacking puts an L in front of them."""
    stacked = len(variable.get_value().shape) - len(variable.dims)
    return "L" * stacked + variable.dims


def parameter_shardings(model: Model, mesh: Mesh) -> dict[str, NamedSharding]:
    """Where each parameter lives, by dotted name."""
    return {
        name: named_sharding(dim_letters(variable), variable.get_value().shape, mesh)
        for name, variable in named_parameters(model).items()
    }


def map_parameters(model: Model, leaf: Callable[[str, nnx.Variable], Any]) -> Params:
    """`leaf(name, variable)` of every parameter, in the shape of the parameters' nested dict."""
    flat = nnx.to_flat_state(nnx.state(model))
    return nnx.traversals.unflatten_mapping(
        {path: leaf(".".join(map(str, path)), variable) for path, variable in flat}
    )


def initialize(config: Any, mesh: Mesh, seed: int) -> Model:
    """A randomly initialised model, every parameter created on the devices that hold it."""
    bind, abstract = split(build_abstract(config))
    placed = parameter_shardings(bind(abstract), mesh)
    out_shardings = map_parameters(bind(abstract), lambda name, _: placed[name])
    create = jax.jit(
        lambda: split(build(config, rngs=nnx.Rngs(seed)))[1], out_shardings=out_shardings
    )
    return bind(create())


def count_parameters(model: Model) -> int:
    """The number of parameters."""
    return sum(variable.get_value().size for variable in named_parameters(model).values())


def describe(model: Model) -> dict[str, Any]:
    """What a native checkpoint says of its model: all that `from_description` needs."""
    origin = None if model.origin is None else dataclasses.asdict(model.origin)
    return {"config": to_dict(model.config), "origin": origin}


def from_description(
    description: dict[str, Any], changes: Mapping[str, Any] = {}, /, **fields: Any
) -> Model:
    """The model of a description, without weights.

    `changes` and `fields` are those of `with_fields`.
    """
    config = with_fields(from_dict(description["config"]), changes, **fields)
    model = build_abstract(config)
    if description["origin"] is not None:
        model.origin = Origin(**description["origin"])
    return model
