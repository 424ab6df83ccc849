"""Settings for measuring a run's speed: the device peak behind MFU, and the steps to profile."""

import dataclasses
import re
from typing import ClassVar

from jaxllm.config.checks import check_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """How the speed of a run is measured; no number of the run depends on it."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    # TFLOP/s that one device can do in the dtype of the run; None: by the name of the device.
    peak_tflops: float | None = None
    # Steps to profile, such as "10:15", both included; the trace is in the folder `profile`.
    profile: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, "speed.")
        if self.peak_tflops is not None and not 0 < self.peak_tflops < float("inf"):
            raise ValueError(f"speed.peak_tflops={self.peak_tflops} must be positive")
        _ = self.profiled

    @property
    def profiled(self) -> range:
        """The numbers of the steps to profile; the first step of a run is 1."""
        if self.profile is None:
            return range(0)
        found = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", self.profile)
        first, last = map(int, found.groups()) if found else (0, 0)
        if not 1 <= first <= last:
            raise ValueError(
                f"speed.profile={self.profile!r} is not FIRST:LAST, such as 10:15: the steps to "
                "profile, from 1 on"
            )
        return range(first, last + 1)

    def check_steps(self, steps: int) -> None:
        """Raises ValueError if a step to profile comes after the last of the run's steps."""
        if self.profiled and self.profiled[-1] > steps:
            raise ValueError(
                f"speed.profile={self.profile!r} has steps after the last one: steps={steps}"
            )
