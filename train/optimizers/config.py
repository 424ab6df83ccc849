"""The optimizer's config: the rule by name, its schedule, clipping, and what it trains."""

import dataclasses
from typing import ClassVar, Literal

from jaxllm.config import ReduceDtype
from jaxllm.config.checks import check_fields, check_not_negative, check_positive
from jaxllm.lora.config import LoraConfig

from .schedule_config import ScheduleConfig

OptimizerName = Literal["adamw", "lion", "muon", "adafactor", "sgd"]
# The parameters' dtype: float32; or bfloat16, with a float32 copy in the optimizer's state that
# updates add up in, or rounded at random so that small updates are kept on average.
Precision = Literal["float32", "bfloat16_master", "bfloat16_stochastic"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadStepsConfig:
    """Steps whose gradient is not finite, or a spike."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    action: Literal["stop", "skip"] = "stop"  # skip: the step changes nothing
    spike: float | None = None  # a gradient norm of this many times its recent mean is a spike

    def __post_init__(self) -> None:
        prefix = "optimizer.bad_steps."
        check_fields(self, prefix)
        if self.spike is not None and self.spike <= 1:
            raise ValueError(f"{prefix}spike={self.spike} is not more than 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """Parameters with settings of their own, like one of PyTorch's parameter groups.

    The first group with a pattern that matches a parameter, or a module around it, counts.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    # Ends of names, with wildcards: embed, norm, layers.0, attn.*, lora.b.
    params: tuple[str, ...]
    rate: float = 1.0  # a multiple of the schedule's learning rate; 0 freezes
    weight_decay: float | None = None  # None: as for the others

    def __post_init__(self) -> None:
        prefix = "optimizer.groups: "
        check_fields(self, prefix)
        check_not_negative(self, "rate", "weight_decay", prefix=prefix)
        if not self.params:
            raise ValueError(f"{prefix}params is empty: a group needs a pattern")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(ScheduleConfig):
    """An optimizer and its schedule. Weight decay applies to kernels and embeddings, or to all."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    RENAMED: ClassVar = {
        "on_bad_step": "optimizer.bad_steps.action",
        "spike": "optimizer.bad_steps.spike",
        **ScheduleConfig.RENAMED,
    }

    name: OptimizerName = "adamw"
    lora: LoraConfig | None = None  # train factors beside frozen parameters; None: train all
    precision: Precision = "float32"  # of the parameters that are trained
    b1: float = 0.9  # of adamw and lion, and of what muon leaves to AdamW
    b2: float = 0.95  # likewise
    eps: float = 1e-8  # of AdamW
    momentum: float = 0.95  # of muon and sgd
    nesterov: bool = True  # whether these two look ahead
    weight_decay: float = 0.1  # decoupled; sgd adds it to the gradient
    decay_all: bool = False  # also norms and biases, like PyTorch with a single parameter group
    clip_value: float | None = None  # maximum absolute value of a gradient's elements
    clip_norm: float | None = 1.0  # maximum global gradient norm
    ema: float | None = None  # decay of a moving average of the weights, which evaluations use
    bad_steps: BadStepsConfig = BadStepsConfig()
    groups: tuple[GroupConfig, ...] = ()  # parameters with a rate or a weight decay of their own
    # In which devices sum the gradients of kernels; None: the model's numerics.reduce_dtype.
    reduce_dtype: ReduceDtype | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        prefix = "optimizer."
        check_not_negative(self, "b1", "b2", "momentum", "weight_decay", "ema", prefix=prefix)
        check_positive(self, "eps", "clip_norm", "clip_value", prefix=prefix)
        for name in ("b1", "b2", "momentum", "ema"):
            if (given := getattr(self, name)) is not None and given >= 1:
                raise ValueError(f"{prefix}{name}={given} is not less than 1")
        if self.lora is not None and self.precision != "float32":
            raise ValueError(
                f"{prefix}precision={self.precision!r}: the parameters that LoRA trains are few "
                "and float32; the frozen ones have lora.base_dtype"
            )
