"""Checkpoints to models: every device shard is read from the bytes that hold it."""

import logging
from pathlib import Path
from typing import Any, get_args

import jax
from jax.sharding import Mesh

from jaxllm.config import Dtype
from jaxllm.errors import UserError
from jaxllm.interop.formats.byte_sizes import parse_size
from jaxllm.interop.formats.table import model_format_of
from jaxllm.models import Model, build_abstract
from jaxllm.params import with_arrays

from .model_arrays import make_origin
from .plan import MAX_RAM, Plan, make_plan
from .streaming.device_buffers import make_assembly
from .streaming.stream import stream
from .tied_tensors import check_copies
from .user_family import open_checkpoint, resolve_family

logger = logging.getLogger(__name__)


def load_pretrained(
    path: str | Path,
    *,
    mesh: Mesh | None = None,
    dtype: Dtype | None = None,
    strict: bool = True,
    max_ram: int | str = MAX_RAM,
    rules: Any = None,
) -> Model:
    """The model stored at `path`: a folder of Hugging Face, of Meta, of tlama, or a native one.

    Numbers are taken as they are, NaN and infinity among them, bit for bit.

    Args:
        path: the folder; with rules of your own it may be a file.
        mesh: where the parameters are to live, each device's part loaded straight to it; by
            default all of them on the first device.
        dtype: of the parameters and the activations; by default each parameter's own, as stored.
        strict: whether to refuse what the folder has beyond the model: tensors and fields of its
            config that nobody understands. If not, they are logged as a warning and left out.
            What is missing, mis-shaped or unsupported is refused either way.
        max_ram: host memory to take above that of the arrays: bytes, or a text like "256MiB".
            It does not bind Orbax, which reads native checkpoints and takes an array at a time.
        rules: of a model of your own, as docs/rules.md says: a Python file, which is run, or an
            object that defines the same.

    Raises:
        CheckpointError: the folder is not a checkpoint, or a tensor is missing, unexpected or
            mis-shaped, or a field of its config is not understood. Lists everything wrong.
        UserError: `dtype` or `max_ram` is not one.
    """
    if dtype not in (None, *get_args(Dtype)):
        raise UserError(f"dtype={dtype!r} is not one of {', '.join(get_args(Dtype))}")
    path, budget = Path(path), parse_size(max_ram)
    if (own_arrays := model_format_of(path)) is not None:
        if rules is not None:
            resolve_family(rules)  # to write it by
        return own_arrays.load(path, mesh=mesh, dtype=dtype)
    checkpoint = open_checkpoint(path, rules)
    plan = make_plan(checkpoint, mesh=mesh, dtype=dtype, max_ram=budget, strict=strict)
    if plan.tolerated:
        logger.warning("%s: left out, since strict=False:\n  %s", path, "\n  ".join(plan.tolerated))
    check_copies(plan, path)
    model = with_arrays(build_abstract(plan.config), _read_arrays(plan))
    model.origin = make_origin(checkpoint, plan)
    return model


def _read_arrays(plan: Plan) -> dict[str, jax.Array]:
    """The model's arrays on their devices."""
    assemblies = {
        name: make_assembly(array.side, array.sizes, array.dtype, array.sharding)
        for name, array in plan.arrays.items()
    }
    stream(plan.moves(), assemblies, plan.max_ram)
    return {
        name: jax.make_array_from_single_device_arrays(
            array.shape, array.sharding, assemblies[name].arrays()
        )
        for name, array in plan.arrays.items()
    }
