"""Peak arithmetic of accelerators, by the name that JAX gives them: dense bfloat16, per device.

From the makers' data sheets. A TPU v2 or v3 chip has two devices; all others are one each. Sparse
peaks, which some sheets print larger, do not apply.
"""

import jax

from jaxllm.distributed.devices import begins_with, device_of_kind

# TFLOP/s by the first words of `device_kind`: of devices that `jaxllm plan` does not know, and of
# those whose name begins with one that it knows. The first that matches counts.
PEAK_TFLOPS = {
    "TPU7x": 1153.5,  # a chip of 2307 has two devices
    "TPU v4 lite": 138.0,
    "TPU v4": 275.0,
    "TPU v3": 61.5,
    "TPU v2": 23.0,
    "NVIDIA GB200": 2500.0,
    "NVIDIA B200": 2250.0,
    "NVIDIA GH200": 989.4,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H100 NVL": 835.5,
    "NVIDIA H800": 989.4,
    "NVIDIA A800": 312.0,
    "NVIDIA L40S": 362.0,
    "NVIDIA L40": 181.0,
    "NVIDIA L4": 121.0,
    "NVIDIA A10G": 70.0,
    "AMD Instinct MI300X": 1307.4,
    "AMD Instinct MI325X": 1307.4,
}


def peak_flops(device: jax.Device, given_tflops: float | None = None) -> float | None:
    """Returns the peak of a device in FLOP/s; None if it is not known, as of a CPU.

    Args:
        device: any device of the run.
        given_tflops: what the user says, in TFLOP/s; it counts before the table.
    """
    if given_tflops is not None:
        return given_tflops * 1e12
    kind = device.device_kind
    found = next((peak for name, peak in PEAK_TFLOPS.items() if begins_with(kind, name)), None)
    if found is not None:
        return found * 1e12
    known = device_of_kind(kind)
    return None if known is None else known.flops
