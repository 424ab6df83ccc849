"""Settings of a run's log: how often lines are written, and to which services besides."""

import dataclasses
from typing import ClassVar

from jaxllm.config.checks import check_counts, check_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Where the metrics of a run go besides `metrics.jsonl`; no number of the run depends on it."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    # Steps between records of the speed, and between progress lines if the output is no terminal.
    every: int = 10
    tensorboard: bool | None = None  # None: log to TensorBoard if tensorboardX is installed
    wandb: str | None = None  # Weights & Biases project to log to

    def __post_init__(self) -> None:
        check_fields(self, "logging.")
        check_counts(self, "every", prefix="logging.")
