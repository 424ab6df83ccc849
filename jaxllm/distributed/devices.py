"""Accelerators: memory, arithmetic and bandwidths of one device, as their vendors publish them."""

import re
from typing import NamedTuple

from jaxllm.errors import UserError, did_you_mean

GIB = 2**30


class Device(NamedTuple):
    """One accelerator: a TPU chip or a GPU. Rates are peaks; those of links are into a device."""

    name: str  # as in `--topology v5p:4x4x4`
    platform: str  # of jax: "tpu" or "cuda"
    kinds: tuple[str, ...]  # the first words of `jax.Device.device_kind`
    memory: int  # bytes of HBM that programs may use
    flops: float  # bfloat16 additions and multiplications per second, without sparsity
    hbm: float  # bytes per second
    link: float  # bytes per second over ICI or NVLink, all links of a device together
    network: float  # bytes per second from another slice or host
    per_host: int  # devices of one host
    ndim: int  # dimensions of a slice's torus; 0 for GPUs, which a switch joins
    sources: tuple[str, ...]  # where the figures stand
    # 8-bit floating-point additions and multiplications per second; None: it has no units for them.
    float8_flops: float | None = None


_TPU = "https://cloud.google.com/tpu/docs"
_NVIDIA = "https://www.nvidia.com/en-us/data-center"
_DGX = "https://docs.nvidia.com/dgx"

# `memory` of TPUs is what libtpu 0.0.42.1 calls available HBM when a program needs more; that of
# GPUs is the total that the CUDA driver reports. `link` of TPUs is the "interchip interconnect
# bandwidth", of GPUs half of NVLink's, which counts both directions. `network` of GPUs is one
# 400 (A100: 200) Gb/s adapter each; of TPUs 200 Gb/s for the four chips of a host, an estimate.
_ROWS = (
    Device(
        name="v5e",
        platform="tpu",
        kinds=("TPU v5 lite", "TPU v5e"),
        memory=int(15.75 * GIB),
        flops=197e12,
        hbm=819e9,
        link=200e9,
        network=6.25e9,
        per_host=4,
        ndim=2,
        sources=(f"{_TPU}/v5e",),
    ),
    Device(
        name="v5p",
        platform="tpu",
        kinds=("TPU v5p", "TPU v5"),
        memory=int(95.74 * GIB),
        flops=459e12,
        hbm=2765e9,
        link=600e9,
        network=6.25e9,
        per_host=4,
        ndim=3,
        sources=(f"{_TPU}/v5p",),
    ),
    Device(
        name="v6e",
        platform="tpu",
        kinds=("TPU v6 lite", "TPU v6e"),
        memory=int(31.25 * GIB),
        flops=918e12,
        hbm=1640e9,
        link=448e9,
        network=6.25e9,
        per_host=4,
        ndim=2,
        sources=(f"{_TPU}/v6e",),
    ),
    Device(
        name="a100",
        platform="cuda",
        kinds=("NVIDIA A100-SXM4-80GB", "NVIDIA A100"),
        memory=84_987_740_160,
        flops=312e12,
        hbm=2039e9,
        link=300e9,
        network=25e9,
        per_host=8,
        ndim=0,
        sources=(f"{_NVIDIA}/a100", f"{_DGX}/dgxa100-user-guide"),
    ),
    Device(
        name="h100",
        platform="cuda",
        kinds=("NVIDIA H100",),
        memory=84_929_347_584,
        flops=989.4e12,
        hbm=3352e9,
        link=450e9,
        network=50e9,
        per_host=8,
        ndim=0,
        sources=(f"{_NVIDIA}/h100", f"{_DGX}/dgxh100-user-guide"),
        float8_flops=1978.9e12,
    ),
    Device(
        name="h200",
        platform="cuda",
        kinds=("NVIDIA H200",),
        memory=150_121_545_728,
        flops=989.4e12,
        hbm=4800e9,
        link=450e9,
        network=50e9,
        per_host=8,
        ndim=0,
        sources=(f"{_NVIDIA}/h200", f"{_DGX}/dgxh100-user-guide"),
        float8_flops=1978.9e12,
    ),
)
DEVICES = {device.name: device for device in _ROWS}


def find_device(name: str) -> Device:
    """Returns the accelerator of this name, such as "v5p". Raises UserError if it is unknown."""
    if name in DEVICES:
        return DEVICES[name]
    hint = did_you_mean(name, DEVICES) or f"; known are {', '.join(DEVICES)}"
    raise UserError(f"{name!r} is not a device{hint}")


def device_of_kind(kind: str) -> Device | None:
    """Returns the accelerator that jax calls `kind` (`device.device_kind`); None if unknown."""
    matches = [
        (len(prefix), device)
        for device in _ROWS
        for prefix in device.kinds
        if begins_with(kind, prefix)
    ]
    return max(matches, key=lambda match: match[0])[1] if matches else None


def check_float8(device: Device | None) -> None:
    """Raises UserError if a device is known to have no units for 8-bit floats."""
    if device is not None and device.float8_flops is None:
        able = ", ".join(each.name for each in _ROWS if each.float8_flops is not None)
        raise UserError(
            f"dtype=float8: {device.name} has no units for 8-bit floats, so that rounding to them "
            f"would cost time and precision; {able} have. Set dtype to bfloat16"
        )


def begins_with(kind: str, words: str) -> bool:
    """Whether a `device_kind` begins with these words: "NVIDIA L40" does not with "NVIDIA L4"."""
    return re.match(rf"{re.escape(words)}(?![0-9A-Za-z])", kind) is not None
