"""Model parameters as plain pytrees: splitting, names, shapes, shardings and initialization.

Jitted functions take and return parameters as nested dicts of arrays, which dispatch fastest and
are what checkpoints store. Inside, `bind` turns them back into a model.
"""

import dataclasses
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from .checkpoint_origin import Origin
from .checkpointing.orbax_layout import ADAPTER, group_problems, read_step
from .checkpointing.stored_array import StoredArray, open_arrays
from .config import from_dict, to_dict, with_fields
from .config.checks import check_seed
from .errors import OTHER_VERSION, CheckpointError
from .layers.stack import layer_range
from .models import AnyModel, Model, build, build_abstract
from .sharding import named_sharding

_LAYER = re.compile(r"((?:.+\.)?layers)\.(\d+(?::\d+)*)\.")  # a name's list of layers, its label

Params = dict[str, Any]  # nested dicts of arrays, as the model's modules are nested


def split(model: AnyModel) -> tuple[Callable[[Params], AnyModel], Params]:
    """Splits a model into a function and its parameters.

    Returns:
        `bind`, which returns the model with given parameters, and the parameters as a nested dict.
        `bind(params)` is the same model again.
    """
    graphdef, state = nnx.split(model)
    treedef = jax.tree.structure(state)

    def bind(params: Params) -> AnyModel:
        return nnx.merge(graphdef, jax.tree.unflatten(treedef, jax.tree.leaves(params)))

    return bind, nnx.to_pure_dict(state)


def named_parameters(model: Model) -> dict[str, nnx.Variable]:
    """Maps dotted names, such as `layers.0:32.attn.q_proj.kernel`, to the model's parameters."""
    return {
        ".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(nnx.state(model))
    }


def parameter_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Maps dotted names to the parameters' shapes."""
    return {
        name: tuple(variable.get_value().shape)
        for name, variable in named_parameters(model).items()
    }


def with_arrays(model: AnyModel, arrays: Mapping[str, jax.Array]) -> AnyModel:
    """Returns the model with its parameters replaced by `arrays`, given by dotted name.

    Raises ValueError unless `arrays` holds exactly the model's parameters, each in its own shape.
    """
    wanted = parameter_shapes(model)
    given = {name: array.shape for name, array in arrays.items()}
    if wrong := {name for name, _ in wanted.items() ^ given.items()}:
        raise ValueError(
            "arrays do not match the model's parameters; missing, unknown or of another shape: "
            + ", ".join(sorted(wrong))
        )
    graphdef, state = nnx.split(model)
    flat = nnx.to_flat_state(state)
    values = [(path, v.replace(arrays[".".join(map(str, path))])) for path, v in flat]
    return nnx.merge(graphdef, nnx.from_flat_state(values))


def unstack_name(name: str) -> list[tuple[str, int | None]]:
    """Expands the name of a stacked parameter into one name per layer.

    Returns:
        (name, index along the stacked dimension) of each layer. For example,
        `layers.0:2.attn.q_proj.kernel` gives `[("layers.0.attn.q_proj.kernel", 0),
        ("layers.1.attn.q_proj.kernel", 1)]`. A parameter that is not stacked gives
        `[(name, None)]`.
    """
    prefix, _, rest = name.rpartition("layers.")
    label, _, parameter = rest.partition(".")
    if ":" not in label:
        return [(name, None)]
    return [
        (f"{prefix}layers.{layer}.{parameter}", i) for i, layer in enumerate(layer_range(label))
    ]


def stacked_layers(model: Model) -> dict[str, dict[str, range]]:
    """Maps the path of each list of layers to its labels and the layers under each label.

    For example, a model with `layers.0:32.attn.q_proj.kernel` gives
    `{"layers": {"0:32": range(0, 32)}}`.
    """
    return stack_labels(named_parameters(model))


def stack_labels(names: Iterable[str]) -> dict[str, dict[str, range]]:
    """Returns what `stacked_layers` does, for the names of parameters."""
    found: dict[str, dict[str, range]] = {}
    for name in names:
        if match := _LAYER.match(name):
            found.setdefault(match[1], {})[match[2]] = layer_range(match[2])
    return found


def dim_letters(variable: nnx.Variable) -> str:
    """Returns the dimension letters of a parameter, with a leading L if its layers are stacked."""
    stacked = len(variable.get_value().shape) - len(variable.dims)
    return "L" * stacked + variable.dims


def parameter_shardings(model: Model, mesh: Mesh) -> dict[str, NamedSharding]:
    """Maps dotted names to the parameters' shardings on a mesh."""
    return {
        name: named_sharding(dim_letters(variable), variable.get_value().shape, mesh)
        for name, variable in named_parameters(model).items()
    }


def map_parameters(model: Model, leaf: Callable[[str, nnx.Variable], Any]) -> Params:
    """Returns `leaf(name, variable)` of every parameter, nested as the parameters are."""
    flat = nnx.to_flat_state(nnx.state(model))
    return nnx.traversals.unflatten_mapping(
        {path: leaf(".".join(map(str, path)), variable) for path, variable in flat}
    )


def initialize(config: Any, mesh: Mesh, seed: int) -> Model:
    """Builds a randomly initialized model, with each parameter created on its own devices.

    Args:
        config: of any model class.
        mesh: the devices; parameters are sharded by their dimension letters.
        seed: of the random weights, which do not depend on the mesh.

    Raises:
        UserError: the seed is not in [0, 2**32).
    """
    check_seed(seed)
    bind, abstract = split(build_abstract(config))
    placed = parameter_shardings(bind(abstract), mesh)
    out_shardings = map_parameters(bind(abstract), lambda name, _: placed[name])
    create = jax.jit(
        lambda: split(build(config, rngs=nnx.Rngs(seed)))[1], out_shardings=out_shardings
    )
    return bind(create())


def count_parameters(model: Model) -> int:
    """Returns the number of parameters; tied weights count once."""
    return sum(variable.get_value().size for variable in named_parameters(model).values())


def describe(model: Model) -> dict[str, Any]:
    """Returns the description of a model that native checkpoints store, for `from_description`."""
    origin = None if model.origin is None else dataclasses.asdict(model.origin)
    return {"config": to_dict(model.config), "origin": origin}


def from_description(
    description: dict[str, Any], changes: Mapping[str, Any] = {}, /, **fields: Any
) -> Model:
    """Returns the model that `describe` described, with shapes and dtypes in place of weights.

    Args:
        description: as `describe` returned it.
        changes: config fields to change, by dotted name, as for `with_fields`.
        fields: further config fields to change.

    Raises:
        CheckpointError: this version cannot read the description. Lists every problem.
    """
    if problems := [*_config_problems(description), *_origin_problems(description)]:
        raise CheckpointError([*problems, OTHER_VERSION])
    config = with_fields(from_dict(description["config"]), changes, **fields)
    model = build_abstract(config)
    if description["origin"] is not None:
        model.origin = Origin(**description["origin"])
    return model


def read_model(step: Path, changes: Mapping[str, Any] = {}) -> tuple[Model, dict[str, StoredArray]]:
    """Reads the model of a native checkpoint, with shapes and dtypes in place of weights.

    Args:
        step: the folder of one step.
        changes: config fields to change, by dotted name, as for `with_fields`.

    Returns:
        The model, and its stored arrays by dotted name, of which none is read.

    Raises:
        CheckpointError: jaxllm did not write the checkpoint, this version cannot read its config,
            or its arrays are not those of its config.
    """
    about, items = read_step(step)
    if ADAPTER in about:
        raise CheckpointError(
            f"it holds an adapter of {about[ADAPTER]['base']}, not a whole model; write one for "
            "PEFT with `jaxllm convert RUN OUT --to peft`, or a merged model with `jaxllm convert "
            "RUN OUT --merge`",
            step,
        )
    arrays = open_arrays(step, about, "model", items["model"])
    try:
        model = from_description(about, changes)
    except CheckpointError as error:
        raise CheckpointError(error.problems, step) from None
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    if problems := _array_problems(model, shapes, "stored"):
        raise CheckpointError([*problems, OTHER_VERSION], step)
    return model, arrays


def check_parameters(model: Model) -> None:
    """Checks that a model has exactly the parameters of its config: only those can be loaded again.

    Raises:
        CheckpointError: parameters were added, removed or reshaped. Lists each.
    """
    found = {
        ".".join(map(str, path)): tuple(leaf.shape)
        for path, leaf in nnx.to_flat_state(nnx.state(model))
    }
    if problems := _array_problems(build_abstract(model.config), found, "in the model"):
        raise CheckpointError(
            [*problems, "a checkpoint of this model would lose them or could not be loaded again"]
        )


def _config_problems(description: Mapping[str, Any]) -> list[str]:
    if problems := group_problems(description, ["config"]):
        return problems
    try:
        from_dict(description["config"])
    except ValueError as error:
        return [f"config: {line}" for line in str(error).splitlines()]
    return []


def _origin_problems(description: Mapping[str, Any]) -> Iterator[str]:
    if "origin" not in description:
        yield "origin is missing"
        return
    origin = description["origin"]
    known = {field.name: field for field in dataclasses.fields(Origin)}
    # Fields with a default are absent from what earlier versions wrote.
    needed = {name for name, field in known.items() if field.default is dataclasses.MISSING}
    is_valid = isinstance(origin, dict) and needed <= origin.keys() <= known.keys()
    if origin is not None and not (is_valid and all(isinstance(x, str) for x in origin.values())):
        yield f"origin is {reprlib.repr(origin)}; it must be null or the texts {sorted(known)}"


def _array_problems(model: Model, arrays: Mapping[str, tuple[int, ...]], place: str) -> list[str]:
    """Lists which arrays the model does not have in the same shape, and the reverse.

    Args:
        model: the model that the config describes.
        arrays: the shapes of the arrays found, by dotted name.
        place: where they were found, for the messages.
    """
    wanted = parameter_shapes(model)
    problems = [
        f"{name}: {arrays.get(name, 'missing')} {place}, {wanted.get(name, 'none')} by the config"
        for name in {**wanted, **arrays}
        if wanted.get(name) != arrays.get(name)
    ]
    return [*problems[:8], f"and {len(problems) - 8} more"] if len(problems) > 9 else problems
