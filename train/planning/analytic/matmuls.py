"""FLOPs and time of the matmuls of a split program, kernels included."""

import math
from collections.abc import Mapping
from typing import Any

from jaxllm.distributed.devices import Device

from .attention import attention_flops
from .program import Op, Region, Value, local_bytes, local_shape


def matmul_flops(region: Region, mesh_shape: Mapping[str, int], keys_seen: float = 0.0) -> float:
    """Returns the multiplications and additions of all matmuls on one device.

    `keys_seen` are those of a query in attention kernels, on average.
    """
    return sum(op_flops(op, mesh_shape, keys_seen) * times for op, times in region.walk())


def matmul_seconds(
    region: Region, mesh_shape: Mapping[str, int], device: Device, keys_seen: float = 0.0
) -> float:
    """Returns the time of all matmuls at the peaks of a device: of arithmetic or of HBM.

    A matmul takes as long as its arithmetic, or as reading its operands and writing its result,
    whichever is longer (Williams et al., 2009).
    """
    users: dict[int, list[Op]] = {}
    for op, _ in region.walk():
        for value in op.inputs:
            users.setdefault(id(value), []).append(op)
    total = 0.0
    for op, times in region.walk():
        if not (flops := op_flops(op, mesh_shape, keys_seen)):
            continue
        moved = sum(local_bytes(value, dict(mesh_shape)) for value in op.inputs)
        moved += sum(_written(value, users, dict(mesh_shape)) for value in op.outputs)
        is_narrow = all(value.dtype.itemsize == 1 for value in op.inputs)
        peak = device.float8_flops if is_narrow and device.float8_flops else device.flops
        total += times * max(flops / peak, moved / device.hbm)
    return total


def _written(value: Value, users: Mapping[int, list[Op]], mesh_shape: dict[str, int]) -> float:
    """Returns the bytes of a result, in the dtype that it is converted to where it is made."""
    size = local_bytes(value, mesh_shape)
    after = users.get(id(value), [])
    if len(after) == 1 and after[0].name == "convert_element_type":
        return size * min(1.0, after[0].outputs[0].dtype.itemsize / value.dtype.itemsize)
    return size


def op_flops(op: Op, mesh_shape: Mapping[str, int], keys_seen: float = 0.0) -> float:
    """Returns the multiplications and additions of one matmul on one device; 0 for the rest."""
    sizes = dict(mesh_shape)
    if op.name == "dot_general":
        (summed, _), _ = op.params["dimension_numbers"]
        left = local_shape(op.inputs[0], sizes)
        out = math.prod(local_shape(op.outputs[0], sizes))
        return 2.0 * out * math.prod(left[i] for i in summed)
    if op.name in ("ragged_dot_general", "ragged_dot"):  # each row meets one matrix
        rows, width = op.inputs[0].shape[-2:]
        return 2.0 * rows * width * op.inputs[1].shape[-1]
    if op.name == "conv_general_dilated":
        kernel = op.inputs[1].shape
        channels = kernel[op.params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * math.prod(local_shape(op.outputs[0], sizes)) * math.prod(kernel) / channels
    if op.name == "pallas_call":
        attention = attention_flops(op, keys_seen)
        return _kernel_flops(op.params) if attention is None else attention
    if op.name.startswith("dot_product_attention_"):
        return _attention_flops(op, sizes)
    return 0.0


def _attention_flops(op: Op, mesh_shape: dict[str, int]) -> float:
    """Returns the FLOPs of cuDNN's attention: two products forward, five backward."""
    B, T, N, H = local_shape(op.inputs[0], mesh_shape)
    S = local_shape(op.inputs[1], mesh_shape)[1]
    is_causal = "CAUSAL" in str(op.params.get("mask_type", "")).upper()
    products = 5 if "bwd" in op.name else 2
    return products * 2.0 * B * N * T * S * H / (2 if is_causal else 1)


def _kernel_flops(params: Mapping[str, Any]) -> float:
    """Returns the FLOPs of a Pallas kernel: as it states, or the matmuls of every grid step."""
    if (estimate := params.get("cost_estimate")) is not None:
        return float(estimate.flops)
    grid = params["grid_mapping"].grid
    steps = math.prod(size for size in grid if isinstance(size, int))
    return float(steps * _body_flops(params["jaxpr"]))


def _body_flops(jaxpr: Any) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (summed, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            out = math.prod(eqn.outvars[0].aval.shape)
            total += 2 * out * math.prod(shape[i] for i in summed)
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                body = getattr(inner, "jaxpr", inner)
                if hasattr(body, "eqns"):
                    total += eqn.params.get("length", 1) * _body_flops(body)
    return total
