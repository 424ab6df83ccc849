"""A model's arrays by name, in memory or in a checkpoint, as sources that are read when used."""

import dataclasses
import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from jaxllm.checkpoint_origin import Origin
from jaxllm.config import Config, Dtype, dtype_fields, with_fields
from jaxllm.config.numerics import check_dtype
from jaxllm.interop.formats.lazy_tensor import TensorSource, from_jax, from_stored, transfer_tensor
from jaxllm.interop.formats.quantized.codecs import warn_of_storage
from jaxllm.interop.formats.stored_tensor import (
    CheckpointError,
    StoredTensor,
    dtype_on_devices,
)
from jaxllm.interop.formats.table import ModelFormat, model_format_of
from jaxllm.interop.rules.rule import BoundRule, Stacks
from jaxllm.models import Model, build_abstract
from jaxllm.numerics.narrowing import Zeroed
from jaxllm.params import check_parameters, named_parameters, stacked_layers
from jaxllm.sharding import spans_processes

from .checkpoint import open_checkpoint
from .checkpoint_dir import Checkpoint
from .plan import Plan
from .streaming.array_reads import find_arrays
from .tied_tensors import make_checked_plan

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ModelArrays:
    """The arrays of a model, none of them read yet, and what an exporter needs to know about it.

    Attributes:
        config: the model's config.
        origin: the checkpoint that the model came from, if any.
        stacks: how the model stacks its layers; see `rules.rule.Stacks`.
        arrays: the arrays by name.
        files: the files that they are read from.
        span_processes: whether no single process has all of them.
        cast_to: the dtype that they were cast to; None if they are as they were.
        zeroed: counts the numbers that become zero by that cast, when they are read.
    """

    config: Config
    origin: Origin | None
    stacks: Stacks
    arrays: Mapping[str, TensorSource]
    files: tuple[Path, ...] = ()
    span_processes: bool = False
    cast_to: np.dtype | None = None
    zeroed: Zeroed | None = None

    def astype(self, dtype: Dtype | None) -> Self:
        """Returns the arrays in another dtype, which becomes that of the activations too.

        Raises:
            UserError: `dtype` is not supported.
        """
        if dtype is None:
            return self
        check_dtype(dtype)
        config = with_fields(self.config, dtype_fields(dtype))
        to, zeroed = np.dtype(dtype), Zeroed(np.dtype(dtype))
        arrays = {name: array.astype(to, zeroed, name) for name, array in self.arrays.items()}
        return dataclasses.replace(self, config=config, arrays=arrays, cast_to=to, zeroed=zeroed)

    def as_on_devices(self) -> Self:
        """Returns the arrays in the dtypes that they are loaded in, as native checkpoints have."""
        dtypes = {name: dtype_on_devices(array.dtype) for name, array in self.arrays.items()}
        wide = [name for name, dtype in dtypes.items() if dtype != self.arrays[name].dtype]
        if not wide:
            return self
        stored, to = self.arrays[wide[0]].dtype, dtypes[wide[0]]
        logger.warning("%d arrays are %s: written as %s, as devices have", len(wide), stored, to)
        zeroed = self.zeroed or Zeroed(to)
        cast = {name: self.arrays[name].astype(to, zeroed, name) for name in wide}
        return dataclasses.replace(self, arrays={**self.arrays, **cast}, zeroed=zeroed)


def arrays_of_model(model: Model) -> ModelArrays:
    """Returns the arrays of a model in memory.

    Raises:
        CheckpointError: the model's parameters are not those of its config.
    """
    check_parameters(model)
    arrays = {name: variable.get_value() for name, variable in named_parameters(model).items()}
    return ModelArrays(
        model.config,
        model.origin,
        stacked_layers(model),
        {name: from_jax(array) for name, array in arrays.items()},
        span_processes=any(map(spans_processes, arrays.values())),
    )


def arrays_of_checkpoint(checkpoint: Checkpoint, plan: Plan) -> ModelArrays:
    """Returns the model arrays of a PyTorch checkpoint; rules convert them when they are read."""
    files = {tensor.path for tensor in checkpoint.tensors.values()}
    if checkpoint.family.config_file:
        files.add(checkpoint.config_path)
    return ModelArrays(
        plan.config,
        make_origin(checkpoint, plan),
        stacked_layers(build_abstract(plan.config)),
        apply_rules(plan.rules, plan.tensors),
        tuple(sorted(files)),
    )


def apply_rules(
    rules: Sequence[BoundRule], tensors: Mapping[str, StoredTensor]
) -> dict[str, TensorSource]:
    """Returns the model arrays that rules make of stored tensors; no tensor is read yet.

    An array of tensors that are stored in several dtypes has one that holds all their numbers.
    """
    stored, arrays = {name: from_stored(tensor) for name, tensor in tensors.items()}, {}
    for rule, sizes in rules:
        transfer, parts = rule.importing(sizes), defaultdict[str, dict[str, TensorSource]](dict)
        for source, index in rule.stored.names(sizes):
            for name in find_arrays(rule.model, index, sizes):
                parts[name][source] = stored[source]
        for name, index in transfer.target.names(sizes):
            arrays[name] = transfer_tensor(transfer, index, _in_one_dtype(parts[name]))
    return arrays


def _in_one_dtype(sources: Mapping[str, TensorSource]) -> Mapping[str, TensorSource]:
    dtypes = {source.dtype for source in sources.values()}
    if len(dtypes) == 1:
        return sources
    is_small = all(dtype.itemsize < 4 or dtype == np.float32 for dtype in dtypes)
    wide = np.dtype(np.float32 if is_small else np.float64)
    return {name: source.astype(wide) for name, source in sources.items()}


def arrays_of_native(form: ModelFormat, path: Path) -> ModelArrays:
    """Returns the model arrays of a native checkpoint, or of one step of a run."""
    model, arrays = form.open(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return ModelArrays(model.config, model.origin, stacked_layers(model), arrays, tuple(files))


def open_model_arrays(
    path: Path,
    step: int | None = None,
    rules: Any = None,
    *,
    dtype: Dtype | None = None,
    strict: bool = True,
    allow: Sequence[str] = (),
) -> ModelArrays:
    """Returns the model arrays of a checkpoint of any format. Only headers are read.

    Args:
        path: the folder; with rules it may be a file.
        step: the step of a run; by default the newest.
        rules: rules for a model of your own; see `load_pretrained`.
        dtype: what the caller casts the arrays to; needed if layers are stored in several dtypes.
        strict: as for `load_pretrained`.
        allow: as for `load_pretrained`.

    Raises:
        CheckpointError: the checkpoint is damaged or not understood, or has no such step. Lists
            every problem.
    """
    if (form := model_format_of(path)) is not None:
        return arrays_of_native(form, form.find_step(path, step))
    if step is not None:
        raise CheckpointError(f"{path} is not a run, so it has no step {step}")
    checkpoint = open_checkpoint(path, rules, strict=strict, allow=allow)
    plan = make_checked_plan(checkpoint, dtype=dtype)
    warn_of_storage(checkpoint.path, checkpoint.tensors)
    return arrays_of_checkpoint(checkpoint, plan)


def make_origin(checkpoint: Checkpoint, plan: Plan) -> Origin:
    """Returns what a model remembers about the checkpoint that it came from."""
    return Origin(
        family=checkpoint.family.name,
        config=json.dumps(checkpoint.config),
        layout=json.dumps(dataclasses.asdict(plan.layout)),
        directory=str(checkpoint.path.resolve()),
        checkpoint=str(checkpoint.path.resolve()),
        carried=json.dumps(plan.carried),
    )
