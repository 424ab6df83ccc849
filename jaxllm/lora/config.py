"""The config of LoRA: which projections get factors, their rank and scale, what trains in full."""

import dataclasses
import math
from typing import ClassVar, Literal

from jaxllm.config.checks import check_counts, check_fields, check_not_negative, check_positive

ALL_LINEAR = "all-linear"  # PEFT's word for every projection but the head


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """LoRA (Hu et al., 2021): all parameters are frozen but small factors beside the targets."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    rank: int = 16  # PEFT's r
    alpha: float = 32.0  # PEFT's lora_alpha: what the factors add is scaled by alpha / rank
    rslora: bool = False  # scale by alpha / sqrt(rank) (Kalajdzievski, 2023); PEFT's use_rslora
    dropout: float = 0.0  # of the factors' input; experts have none
    # Projections, by the end of their name, with wildcards: q_proj, attn.*, layers.7.mlp.up_proj.
    targets: tuple[str, ...] = (ALL_LINEAR,)
    full: tuple[str, ...] = ()  # modules to train in full, such as embed; PEFT's modules_to_save
    base_dtype: Literal["float32", "bfloat16"] = "float32"  # of the frozen parameters

    def __post_init__(self) -> None:
        prefix = "optimizer.lora."
        check_fields(self, prefix)
        check_counts(self, "rank", prefix=prefix)
        check_positive(self, "alpha", prefix=prefix)
        check_not_negative(self, "dropout", prefix=prefix)
        if self.dropout >= 1:
            raise ValueError(f"{prefix}dropout={self.dropout} is not less than 1")
        if not self.targets and not self.full:
            raise ValueError(f"{prefix}targets and {prefix}full are both empty: nothing to train")

    @property
    def scale(self) -> float:
        """The factor of what is added to a projection."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)
