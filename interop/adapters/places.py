"""Where the kernels of projections are stored: tensors, rows and columns, found by the rules."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxllm.interop.families import Layout, RuleTable
from jaxllm.interop.formats.lazy_tensor import TensorSource
from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.interop.loading.model_arrays import ModelArrays
from jaxllm.interop.rules.binding import fused_parts
from jaxllm.interop.rules.boxes import Box
from jaxllm.interop.rules.pattern import Index
from jaxllm.interop.rules.rule import BoundRule
from jaxllm.interop.saving.export import choose_family, possible_families
from jaxllm.layers.adapters.low_rank import split_equation, summed_dims
from jaxllm.lora.attach import projections
from jaxllm.models import Model
from jaxllm.params import named_parameters, stacked_layers

_TENSOR_BITS = 48  # of a place: the element's number within its tensor; above, that of the tensor


class Place(NamedTuple):
    """Where one matrix of a projection is stored: of one layer, and of one expert.

    Attributes:
        projection: its name in the model.
        position: of the matrix along the array's dimensions of layers and experts, if it has them.
        tensor: the name of the stored tensor.
        inputs: the positions of its inputs along the tensor's dimension of inputs.
        outputs: likewise of its outputs.
        expert: its position along the tensor's dimension of experts, if it has one.
        shape: (inputs, outputs) of the whole tensor.
        input_dim: the dimension of inputs.
        num_experts: in the tensor; 1 without that dimension.
    """

    projection: str
    position: tuple[int, ...]
    tensor: str
    inputs: np.ndarray
    outputs: np.ndarray
    expert: int
    shape: tuple[int, int]
    input_dim: int
    num_experts: int

    @property
    def module(self) -> str:
        """The name of PyTorch's module, or of its parameter if that holds all experts."""
        return self.tensor.removesuffix(".weight")


def module_rules(model: Model) -> tuple[RuleTable, tuple[BoundRule, ...]]:
    """Returns the rules of a model's Hugging Face family for the tensors of PyTorch's modules.

    Raises:
        CheckpointError: no family can express the model.
    """
    shapes = {
        name: TensorSource(x.dtype, tuple(x.shape), _unread)
        for name, variable in named_parameters(model).items()
        if (x := variable.get_value()) is not None
    }
    stacks = stacked_layers(model)
    arrays = ModelArrays(model.config, model.origin, stacks, shapes)
    family, _, _ = choose_family(arrays, possible_families(model.origin, "hf", None), None)
    table = family.table(model.config, Layout(experts="fused"))
    return table, table.bound(stacks)


def _unread(_: Box) -> np.ndarray:
    raise AssertionError("only shapes are needed")


def find_places(
    model: Model, rules: Sequence[BoundRule], names: Sequence[str] | None = None
) -> list[Place]:
    """Returns where the kernels of projections are stored, by default of all.

    Raises:
        CheckpointError: a kernel is not a matrix in the checkpoint.
    """
    modules = projections(model)
    wanted = {f"{name}.kernel": name for name in (modules if names is None else names)}
    finder = _Finder(rules)
    found: list[Place] = []
    for bound in rules:
        for array, index in bound.rule.model.names(bound.sizes):
            if array in wanted:
                module = modules[wanted[array]]
                shape = tuple(module.kernel.get_value().shape)
                found += finder.places(wanted[array], bound, index, shape, module.equation)
    return found


class _Finder:
    """Finds elements of kernels in stored tensors, whose elements it numbers."""

    def __init__(self, rules: Sequence[BoundRule]):
        self._names: list[str] = []
        self._starts: dict[str, tuple[str, int]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for bound in rules:
            self._shapes |= dict(bound.stored())
        for whole, parts in fused_parts(rules).items():
            start = 0
            for name, shape in parts.items():
                self._starts[name] = whole, start
                start += shape[0]
            self._shapes[whole] = (start, *shape[1:])

    def places(
        self, name: str, bound: BoundRule, index: Index, shape: tuple[int, ...], equation: str
    ) -> Iterator[Place]:
        """Yields the place of each matrix of a kernel."""
        _, dims, _ = split_equation(equation)
        letters = "L" * (len(shape) - len(dims)) + dims
        summed = summed_dims(equation)
        each = len(shape) - len(dims) + (dims[0] == "E" and len(dims) > 2)
        for position in itertools.product(*map(range, shape[:each])):
            fixed = [(i, i + 1) for i in position]
            rest = list(zip(letters[each:], shape[each:], strict=True))
            into = [*fixed, *((0, size if letter in summed else 1) for letter, size in rest)]
            out = [*fixed, *((0, 1 if letter in summed else size) for letter, size in rest)]
            tensor, inputs = self._locate(bound, index, tuple(into))
            _, outputs = self._locate(bound, index, tuple(out))
            yield self._place(name, position, tensor, inputs, outputs)

    def _locate(self, bound: BoundRule, index: Index, box: Box) -> tuple[str, np.ndarray]:
        """Returns the tensor that holds a box of a kernel, and the positions of its elements."""
        names: list[str] = []

        def parts(name: str, held: Box) -> list[tuple[Box, np.ndarray]]:
            if name not in names:
                names.append(name)
            ranges = [np.arange(*along) for along in held]
            numbers = np.ravel_multi_index(np.ix_(*ranges), self._shapes[name])
            return [(held, numbers + (names.index(name) << _TENSOR_BITS))]

        found = bound.rule.importing(bound.sizes).read(index, box, parts, np.dtype(np.int64))
        if len(names) != 1:
            raise CheckpointError(f"{bound.rule}: one projection is stored as {', '.join(names)}")
        places = np.stack(np.unravel_index(found.reshape(-1), self._shapes[names[0]]))
        whole, start = self._starts.get(names[0], (names[0], 0))
        places[0] += start
        return whole, places

    def _place(
        self,
        name: str,
        position: tuple[int, ...],
        tensor: str,
        inputs: np.ndarray,
        outputs: np.ndarray,
    ) -> Place:
        shape = self._shapes[tensor]
        if len(shape) not in (2, 3):
            raise CheckpointError(f"{tensor} has {len(shape)} dimensions; LoRA needs a matrix")
        varies = [bool(np.ptp(along)) for along in inputs]
        fixed = [bool(np.ptp(along)) for along in outputs]
        first = len(shape) - 2  # the dimension of experts comes before
        # A dimension of size 1 varies nowhere.
        input_dim = first if varies[first] or fixed[first + 1] else first + 1
        output_dim = 2 * first + 1 - input_dim
        return Place(
            name,
            position,
            tensor,
            inputs[input_dim],
            outputs[output_dim],
            int(inputs[0][0]) if first else 0,
            (shape[input_dim], shape[output_dim]),
            input_dim - first,
            shape[0] if first else 1,
        )


def module_names(rules: Sequence[BoundRule]) -> list[str]:
    """Returns the names of PyTorch's modules with a weight, and of parameters of experts."""
    names = {name.partition("#")[0] for bound in rules for name, _ in bound.stored()}
    return sorted(name.removesuffix(".weight") for name in names if not name.endswith(".bias"))


def group_places(places: Sequence[Place]) -> Mapping[str, list[Place]]:
    """Groups places by their tensor, in its order."""
    found: dict[str, list[Place]] = {}
    for place in places:
        found.setdefault(place.tensor, []).append(place)
    return found
