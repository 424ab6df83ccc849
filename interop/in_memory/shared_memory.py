"""Arrays that share the memory of PyTorch's tensors, through DLPack."""

from collections.abc import Iterator

import jax

from jaxllm.interop.loading.plan import Plan
from jaxllm.interop.loading.streaming.array_reads import PlannedArray, find_arrays
from jaxllm.interop.rules.rule import BoundRule

from .state_dict import HeldTensor
from .torch_tensors import is_tensor


def share_arrays(plan: Plan) -> dict[str, jax.Array]:
    """Returns arrays that use the memory of their tensors, by name; those that cannot are left out.

    An array can if it lies on one device, and a tensor there has its layout and dtype.
    """
    found = {}
    for name, tensor in _equal_layouts(plan):
        array = plan.arrays[name]
        if not _is_alike(tensor, array):
            continue
        shared = jax.dlpack.from_dlpack(tensor.data.view(array.shape))
        if shared.devices() == array.sharding.device_set:
            found[name] = shared
    return found


def _equal_layouts(plan: Plan) -> Iterator[tuple[str, HeldTensor]]:
    """Yields each array that has the layout of one tensor, with that tensor."""
    for bound in plan.rules:
        if _keeps_layout(bound):
            for stored, index in bound.rule.stored.names(bound.sizes):
                tensor = plan.tensors[stored]
                if isinstance(tensor, HeldTensor):
                    for name in find_arrays(bound.rule.model, index, bound.sizes):
                        yield name, tensor


def _keeps_layout(bound: BoundRule) -> bool:
    """Whether each array holds one tensor's numbers, in their order."""
    stored, model = bound.rule.stored, bound.rule.model
    return stored.array_axes == model.array_axes and set(stored.name_axes) == set(model.name_axes)


def _is_alike(tensor: HeldTensor, array: PlannedArray) -> bool:
    data = tensor.data
    return (
        is_tensor(data)
        and data.is_contiguous()
        and tensor.dtype == array.dtype
        and len(array.sharding.device_set) == 1
    )
