"""The stopwatch: windows of steps, and memory where devices tell it."""

from types import SimpleNamespace

import jax
import pytest

from jaxllm.train.speed import stopwatch
from jaxllm.train.speed.stopwatch import Rate, Stopwatch, memory_in_use


def test_without_a_counted_step_there_is_no_report(monkeypatch):
    monkeypatch.setattr(stopwatch, "monotonic", lambda: 0.0)
    watch = Stopwatch(Rate(8, 1.0, 1, None))
    assert watch.report() == {}
    watch.step()  # compiled
    assert watch.report() == {}


def test_without_a_peak_there_is_no_mfu(monkeypatch):
    now = 0.0
    monkeypatch.setattr(stopwatch, "monotonic", lambda: now)
    watch = Stopwatch(Rate(8, 4e12, 2, None))
    watch.step()
    now = 3.0
    watch.add("evaluation", 1.0)
    watch.step()
    found = watch.report()
    assert "mfu" not in found
    assert (found["step_s"], found["evaluation_s"]) == (2.0, 1.0)
    assert found["tflops_per_device"] == pytest.approx(1.0)
    assert watch.report() == {}


def test_memory_is_that_of_the_fullest_device(monkeypatch):
    assert memory_in_use() == {}  # a CPU does not tell
    devices = [
        SimpleNamespace(memory_stats=lambda n=n: {"bytes_in_use": n, "peak_bytes_in_use": 2 * n})
        for n in (2**30, 3 * 2**30)
    ]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert memory_in_use() == {"in_use_gib": 3.0, "peak_gib": 6.0}
