"""The timed all-reduce: its sum is checked, and the bandwidth is that of the links."""

import jax
import pytest

from jaxllm.distributed.collective import Timed, time_all_reduce


def test_all_devices_take_part():
    timed = time_all_reduce(4096, repeats=1)
    assert (timed.num_bytes, timed.num_devices) == (4096, len(jax.devices()))
    assert timed.seconds > 0


def test_the_bandwidth_does_not_depend_on_the_number_of_devices():
    """A ring sends `2 (n - 1) / n` of the bytes over each link."""
    assert Timed(100, 2, 1.0).bus_bandwidth == pytest.approx(100)
    assert Timed(100, 4, 1.5).bus_bandwidth == pytest.approx(100)
