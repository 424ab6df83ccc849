"""The config of a learning rate: warm-up, decay and its parameters, or phases."""

import dataclasses
from typing import ClassVar, Literal, get_args

from jaxllm.config.checks import check_fields, check_not_negative, check_positive

Decay = Literal["cosine", "linear", "exponential"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """One phase of a run, with its own warm-up and decay; phases follow each other."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    stop: int  # end step (exclusive); a phase starts where the previous one stops
    learning_rate: float  # peak
    final_learning_rate: float = 0.0
    warmup_steps: int = 0
    decay: Decay = "cosine"

    def __post_init__(self) -> None:
        check_fields(self, "optimizer.phases: ")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiStepConfig:
    """The drops of a rate that is constant between them."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    milestones: tuple[float, ...] = (0.8, 0.9)  # the fractions of the run at which it changes
    factors: tuple[float, ...] = (0.316, 0.1)  # rate / peak after each milestone

    def __post_init__(self) -> None:
        check_fields(self, "optimizer.multi_step.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate of every step; these are fields of the optimizer's config."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    RENAMED: ClassVar = {
        "milestones": "optimizer.multi_step.milestones",
        "factors": "optimizer.multi_step.factors",
    }

    learning_rate: float = 3e-4  # peak
    final_learning_rate: float = 0.0
    final_div_factor: float | None = None  # alternative: final learning rate = peak / this factor
    warmup_steps: int = 0
    # inverse_sqrt falls with the square root of the step from the warm-up on (Vaswani et al., 2017)
    decay: Literal[Decay, "constant", "inverse_sqrt", "wsd", "multi_step"] = "cosine"
    decay_steps: int | None = None  # for decay="wsd": of the last part; None: a tenth of the run
    cycles: int = 1  # how often cosine, linear and exponential decays begin anew at the peak
    multi_step: MultiStepConfig = MultiStepConfig()  # for decay="multi_step"
    phases: tuple[PhaseConfig, ...] = ()  # replaces all the fields above

    def __post_init__(self) -> None:
        prefix = "optimizer."
        check_fields(self, prefix)
        check_positive(self, "learning_rate", prefix=prefix)
        check_not_negative(self, "final_learning_rate", "warmup_steps", prefix=prefix)
        if self.cycles < 1 or (self.cycles > 1 and self.decay not in get_args(Decay)):
            raise ValueError(
                f"{prefix}cycles={self.cycles}: at least 1, and more only for decay="
                f"{', '.join(get_args(Decay))}"
            )
        if self.decay_steps is not None and (self.decay != "wsd" or self.decay_steps < 1):
            raise ValueError(
                f"{prefix}decay_steps={self.decay_steps}: only for decay='wsd', and at least 1"
            )
        if self.final_div_factor is not None and self.final_div_factor < 1:
            raise ValueError(f"optimizer.final_div_factor={self.final_div_factor} is less than 1")
        if self.final_div_factor is not None and self.final_learning_rate:
            raise ValueError(
                "give either optimizer.final_learning_rate or optimizer.final_div_factor, not both"
            )
