"""Peaks of devices by the names that JAX gives them."""

from types import SimpleNamespace

import jax
import pytest

from jaxllm.train.speed.device_peaks import peak_flops


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [
        ("TPU v5 lite", 197.0),
        ("TPU v5p", 459.0),
        ("TPU v5", 459.0),
        ("TPU v6 lite", 918.0),
        ("TPU v4", 275.0),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40", 181.0),
        ("NVIDIA L40S", 362.0),
    ],
)
def test_the_name_decides(kind, tflops):
    assert peak_flops(SimpleNamespace(device_kind=kind)) == tflops * 1e12


@pytest.mark.parametrize("kind", ["NVIDIA L400", "NVIDIA H1000", "TPU v50", "NVIDIA A10"])
def test_a_name_that_only_begins_like_a_known_one_has_no_peak(kind):
    assert peak_flops(SimpleNamespace(device_kind=kind)) is None


def test_a_cpu_has_a_peak_only_if_it_is_given():
    [device, *_] = jax.devices()
    assert peak_flops(device) is None
    assert peak_flops(device, 0.5) == 0.5e12
