"""Loads checkpoints into models: each device shard is read directly from the bytes that hold it."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxllm.config import Dtype
from jaxllm.config.numerics import check_dtype
from jaxllm.hub import local_path
from jaxllm.interop.formats.byte_sizes import parse_size
from jaxllm.interop.formats.quantized.codecs import warn_of_storage
from jaxllm.interop.formats.source_files import check_unchanged, identify
from jaxllm.interop.formats.table import model_format_of
from jaxllm.models import Model, build_abstract
from jaxllm.params import with_arrays

from .checkpoint import open_checkpoint
from .checkpoint_dir import Checkpoint
from .model_arrays import make_origin
from .plan import MAX_RAM, Plan
from .streaming.array_reads import NOTHING, read_arrays
from .tied_tensors import make_checked_plan, warn_of_wide
from .user_family import resolve_family

logger = logging.getLogger(__name__)


def load_pretrained(
    path: str | Path,
    *,
    mesh: Mesh | None = None,
    dtype: Dtype | None = None,
    strict: bool = True,
    max_ram: int | str = MAX_RAM,
    rules: Any = None,
    allow: Sequence[str] = (),
) -> Model:
    """Loads the model stored at `path`: a checkpoint of a known family, or a native one.

    The families include those of Hugging Face, Meta and tlama-core; see docs/families.md. Without
    `dtype`, weights are loaded bit for bit, including NaN and infinity.

    Args:
        path: the folder; with rules of your own it may be a file.
        mesh: the mesh to place the parameters on; each device loads only its own shards. By
            default all parameters go to the first device.
        dtype: dtype of the parameters and the activations; by default as stored. Finite numbers
            beyond its range become its largest; a warning says how many in each tensor.
        strict: whether to reject tensors that are not understood, and config fields if it is
            unknown which of them matter (not for Hugging Face's). If False, they are logged as a
            warning and ignored. Missing tensors and wrong shapes or dtypes are always an error.
        max_ram: host memory to use in addition to the arrays: bytes, or a text like "256MiB".
            It does not limit Orbax, which reads native checkpoints one array at a time.
        rules: rules for a model of your own (docs/rules.md): a Python file, which is run, or an
            object with the same attributes.
        allow: config fields to read otherwise than the file says, as a list: `"NAME"` takes a field
            as absent, `"NAME=VALUE"` as having that value. Each is logged as a warning, since the
            numbers may then differ from the original model's.

    Returns:
        The model, on devices.

    Raises:
        CheckpointError: the folder is not a checkpoint, a tensor is missing, unexpected or of
            the wrong shape, or a field of the config is not understood. Lists every problem.
        UserError: `dtype` or `max_ram` is not valid.

    Example:
        model = load_pretrained("Llama-3.2-1B", mesh=make_mesh(fsdp=4, tensor=2))
    """
    path, budget = local_path(path), parse_size(max_ram)
    check_dtype(dtype)
    if (model_format := model_format_of(path)) is not None:
        if rules is not None:
            resolve_family(rules)  # remembered, so that `save_pretrained` can use them
        return model_format.load(path, mesh=mesh, dtype=dtype)
    checkpoint = open_checkpoint(path, rules, strict=strict, allow=allow)
    before = identify(tensor.path for tensor in checkpoint.tensors.values())
    plan = make_checked_plan(checkpoint, mesh=mesh, dtype=dtype, max_ram=budget)
    model = read_model(checkpoint, plan)
    check_unchanged(before)
    return model


def read_model(
    checkpoint: Checkpoint, plan: Plan, given: Mapping[str, jax.Array] = NOTHING
) -> Model:
    """Reads the model of a plan onto its devices; logs what the plan ignores or does not use.

    Args:
        checkpoint: the checkpoint.
        plan: its plan.
        given: arrays that need not be read, by name.
    """
    warn_of_wide(plan, checkpoint.path)
    warn_of_storage(checkpoint.path, checkpoint.tensors)
    if plan.tolerated:
        ignored = "\n  ".join(plan.tolerated)
        logger.warning("%s: ignored (strict=False):\n  %s", checkpoint.path, ignored)
    _log_unused(checkpoint.config_path, plan.unused)
    model = with_arrays(build_abstract(plan.config), read_arrays(plan, given))
    model.origin = make_origin(checkpoint, plan)
    return model


def _log_unused(config_file: Path, unused: Mapping[str, str]) -> None:
    """Logs which config fields are not used, with a warning for those that may be misspelled."""
    if unused:
        logger.info("%s: fields that are not used: %s", config_file, ", ".join(unused))
    for name, hint in unused.items():
        if hint:
            logger.warning("%s: %s is not used%s", config_file, name, hint)
