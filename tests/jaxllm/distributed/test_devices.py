"""The table of accelerators: its figures are plausible, and devices are found by name and kind."""

import pytest

from jaxllm.distributed.devices import DEVICES, GIB, device_of_kind, find_device
from jaxllm.errors import UserError


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_figures_are_in_their_units(device):
    assert 8 * GIB < device.memory < 300 * GIB
    assert 1e14 < device.flops < 1e16
    assert 5e11 < device.hbm < 1e13
    assert device.network < device.link < device.hbm
    assert all(source.startswith("https://") for source in device.sources)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v5 lite", "v5e"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("cpu", None),
    ],
)
def test_a_device_is_found_by_the_kind_that_jax_names(kind, name):
    found = device_of_kind(kind)
    assert (found and found.name) == name


def test_an_unknown_device_is_rejected_with_the_nearest():
    assert find_device("v5p").name == "v5p"
    with pytest.raises(UserError, match="'h10' is not a device; did you mean"):
        find_device("h10")
    with pytest.raises(UserError, match="known are v5e, v5p"):
        find_device("abacus")
