"""Accounts for a run's time: steps, waiting for data, checkpoints, evaluations and the rest."""

from time import monotonic
from typing import NamedTuple

import jax


class Rate(NamedTuple):
    """The sizes of a step that convert steps per second into tokens per second, FLOP/s and MFU."""

    tokens_per_step: int
    flops_per_step: float  # of the model, over all devices
    num_devices: int
    peak_flops: float | None  # of one device, in FLOP/s; None: not known

    def mfu(self, steps_per_s: float) -> float | None:
        """Returns the model FLOPs utilization: the share of the devices' peak."""
        if self.peak_flops is None:
            return None
        return steps_per_s * self.flops_per_step / (self.num_devices * self.peak_flops)


class Stopwatch:
    """Measures the parts of a run's time, without waiting for a device.

    Times are of this process. A window spans the steps between two reports; the first step of the
    process, which is compiled, belongs to none.
    """

    def __init__(self, rate: Rate):
        self._rate = rate
        self._began = self._window = monotonic()
        self._steps = 0  # in the window
        self._is_compiled = False
        self._parts = dict.fromkeys(("data_wait", "checkpoint", "evaluation"), 0.0)
        self._productive = 0.0  # seconds of steps since the beginning, without waiting

    def add(self, part: str, seconds: float) -> None:
        """Counts time as `data_wait`, `checkpoint` or `evaluation`."""
        self._parts[part] += seconds

    def step(self) -> None:
        """Counts a step whose numbers have arrived."""
        if not self._is_compiled:
            self._is_compiled = True
            self._restart()
        else:
            self._steps += 1

    def report(self) -> dict[str, float]:
        """Returns the numbers of the window by name, and begins the next; empty without a step."""
        if not self._steps:
            return {}
        now, steps, parts = monotonic(), self._steps, self._parts
        spent = now - self._window - parts["checkpoint"] - parts["evaluation"]
        self._productive += spent - parts["data_wait"]
        per_s = steps / max(spent, 1e-9)
        mfu = self._rate.mfu(per_s)
        found = {
            "step_s": spent / steps,
            "compute_s": (spent - parts["data_wait"]) / steps,
            "data_wait_s": parts["data_wait"] / steps,
            "checkpoint_s": parts["checkpoint"],
            "evaluation_s": parts["evaluation"],
            "tokens_per_s": per_s * self._rate.tokens_per_step,
            "tflops_per_device": per_s * self._rate.flops_per_step / self._rate.num_devices / 1e12,
            **({} if mfu is None else {"mfu": mfu}),
            "goodput": self._productive / max(now - self._began, 1e-9),
        }
        self._restart()
        return found

    def _restart(self) -> None:
        self._window, self._steps = monotonic(), 0
        self._parts = dict.fromkeys(self._parts, 0.0)


def memory_in_use() -> dict[str, float]:
    """Returns the device memory in GiB, now and at most, of the fullest device of this process.

    Empty where a device does not tell, as a CPU.
    """
    stats = [found for device in jax.local_devices() if (found := device.memory_stats())]
    fields = {"in_use_gib": "bytes_in_use", "peak_gib": "peak_bytes_in_use"}
    return {
        name: max(found[field] for found in stats) / 2**30
        for name, field in fields.items()
        if stats and all(field in found for found in stats)
    }
