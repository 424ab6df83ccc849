"""Takes models over from PyTorch in memory: modules and state dicts, with their AdamW."""

import dataclasses
from collections.abc import Sequence
from typing import Any, overload

from jax.sharding import Mesh

from jaxllm.config import Dtype
from jaxllm.interop.formats.byte_sizes import parse_size
from jaxllm.interop.loading.checkpoint import with_allowances
from jaxllm.interop.loading.load import read_model
from jaxllm.interop.loading.plan import MAX_RAM
from jaxllm.interop.loading.tied_tensors import make_checked_plan
from jaxllm.interop.optimizer_state.load_state import check_resumable
from jaxllm.models import Model
from jaxllm.optimizer_state import AdamWState

from .module_config import open_in_memory
from .optimizer import read_optimizer
from .shared_memory import share_arrays


@overload
def from_torch(
    module_or_state_dict: Any,
    *,
    config: Any = None,
    mesh: Mesh | None = None,
    rules: Any = None,
    dtype: Dtype | None = None,
    strict: bool = True,
    allow: Sequence[str] = (),
    max_ram: int | str = MAX_RAM,
    share: bool = False,
    optimizer: None = None,
) -> Model: ...


@overload
def from_torch(
    module_or_state_dict: Any,
    *,
    config: Any = None,
    mesh: Mesh | None = None,
    rules: Any = None,
    dtype: Dtype | None = None,
    strict: bool = True,
    allow: Sequence[str] = (),
    max_ram: int | str = MAX_RAM,
    share: bool = False,
    optimizer: object,
) -> tuple[Model, AdamWState]: ...


def from_torch(
    module_or_state_dict: Any,
    *,
    config: Any = None,
    mesh: Mesh | None = None,
    rules: Any = None,
    dtype: Dtype | None = None,
    strict: bool = True,
    allow: Sequence[str] = (),
    max_ram: int | str = MAX_RAM,
    share: bool = False,
    optimizer: Any = None,
) -> Model | tuple[Model, AdamWState]:
    """Returns the model of a PyTorch module or state dict in memory, as `load_pretrained` does.

    Without `dtype`, weights are taken bit for bit. Tensors may lie on any device and have any
    strides; those on accelerators cross the host in chunks. If `torch.distributed` shards them
    (DTensor, FSDP), every process must call this; each sends the others its parts chunk by chunk.

    Args:
        module_or_state_dict: a module, wrapped for training or not, its state dict, or a dict with
            NumPy arrays.
        config: the config of a bare state dict: a config of transformers, the fields of its config
            file as a dict, or the path of a checkpoint or its file. By default the module's own.
        mesh: the mesh to place the parameters on; each device gets only its own shards. By default
            all parameters go to the first device.
        rules: rules for a model of your own (docs/rules.md).
        dtype: dtype of the parameters and the activations; see `load_pretrained`.
        strict: as for `load_pretrained`.
        allow: config fields to read otherwise than the config says; as for `load_pretrained`.
        max_ram: host memory to use in addition to the arrays: bytes, or a text like "256MiB".
        share: whether an array may share the memory of a tensor of the same layout, dtype and
            device (through DLPack), such as an embedding. Changing such a tensor in place, as a
            PyTorch optimizer does, then changes the model too: only share what PyTorch no longer
            trains. By default every number is copied.
        optimizer: PyTorch's AdamW of these parameters, or its state dict.

    Returns:
        The model, on devices; with `optimizer`, the model and the state of AdamW, placed alike.

    Raises:
        CheckpointError: tensors or config fields do not fit or are not understood, or the optimizer
            is not AdamW in float32. Lists every problem.
        UserError: `dtype` or `max_ram` is not valid, or no config is known.

    Example:
        model = from_torch(transformers.AutoModelForCausalLM.from_pretrained(name), mesh=mesh)
    """
    budget = parse_size(max_ram)
    opened = open_in_memory(module_or_state_dict, config, rules)
    checkpoint = with_allowances(opened.checkpoint, strict=strict, allow=allow)
    plan = make_checked_plan(checkpoint, mesh=mesh, dtype=dtype, max_ram=budget)
    if optimizer is not None:
        check_resumable(checkpoint, plan)
    state = None if optimizer is None else read_optimizer(optimizer, opened, plan)
    model = read_model(checkpoint, plan, share_arrays(plan) if share else {})
    assert model.origin is not None
    home = opened.folder
    model.origin = dataclasses.replace(model.origin, directory=home, checkpoint=home)
    return model if state is None else (model, state)
