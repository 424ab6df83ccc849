"""Models whose weights stay in their files: each weight is read whenever it is used."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxllm.config import Dtype, with_fields
from jaxllm.hub import local_path
from jaxllm.interop.formats.quantized.codecs import warn_of_storage
from jaxllm.models import Model, build_abstract
from jaxllm.params import named_parameters, stacked_layers

from .checkpoint import open_checkpoint
from .model_arrays import apply_rules, make_origin
from .tied_tensors import make_checked_plan, warn_of_wide


class StoredParam(nnx.Param):
    """A parameter that is read from its file at every use and never cached."""

    read: Callable[[], jax.Array]

    def get_value(self, *, index: Any = ...) -> jax.Array:
        """Reads the array from its file."""
        value = self.read()
        return value if index is ... else value[index]


def open_pretrained(
    path: str | Path,
    *,
    dtype: Dtype | None = None,
    rules: Any = None,
    strict: bool = True,
    allow: Sequence[str] = (),
) -> Model:
    """Opens a checkpoint as a model with unstacked layers and no weights in memory.

    This runs a model that is larger than memory, op by op. Do not jit it: a jitted function would
    hold all weights at once.

    Arguments and errors are those of `load_pretrained`. Native checkpoints are not supported.
    """
    checkpoint = open_checkpoint(local_path(path), rules, strict=strict, allow=allow)
    plan = make_checked_plan(checkpoint, dtype=dtype)
    warn_of_wide(plan, checkpoint.path)
    warn_of_storage(checkpoint.path, checkpoint.tensors)
    model = build_abstract(with_fields(plan.config, scan_layers=False))
    arrays = apply_rules(plan.table.bound(stacked_layers(model)), plan.tensors)
    for module_path, module in nnx.iter_graph(model):
        if not isinstance(module, nnx.Module):
            continue
        for name, param in list(vars(module).items()):
            if isinstance(param, nnx.Param):
                source = arrays[".".join(map(str, (*module_path, name)))]
                wanted = param.get_value().dtype
                setattr(module, name, _stored(param, source, wanted))
    model.origin = make_origin(checkpoint, plan)
    return model


def is_stored(model: Model) -> bool:
    """Returns whether the weights of a model stay in their files."""
    return any(isinstance(param, StoredParam) for param in named_parameters(model).values())


def _stored(param: nnx.Param, source: Any, dtype: np.dtype) -> StoredParam:
    """Returns a parameter that keeps only its shape in memory and reads `source` when used."""
    source = source.astype(np.dtype(dtype))

    def read() -> jax.Array:
        return jnp.asarray(source.read(source.whole))

    return StoredParam(param.get_value(), dims=param.dims, read=read)
