"""Settings of exports while training: how often, in which format, and how many stay."""

import dataclasses
from typing import ClassVar, Literal

from jaxllm.config import Dtype
from jaxllm.config.checks import check_counts, check_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Exports of the weights into `exports/STEP` of the run's folder, while it trains."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    every: int | None = None  # steps between exports, of which the last step is one; None: none
    # hf, with LoRA the merged model; peft: the adapter. None: peft with LoRA, otherwise hf.
    to: Literal["hf", "peft"] | None = None
    dtype: Dtype | None = None  # of an export to hf; None: as the weights are
    keep: int = 2  # number of newest exports to keep

    def __post_init__(self) -> None:
        check_fields(self, "export.")
        check_counts(self, "every", "keep", prefix="export.")

    def check(self, is_lora: bool) -> None:
        """Raises ValueError if the run has no such exports."""
        if self.to == "peft" and not is_lora:
            raise ValueError("export.to='peft' writes an adapter, but optimizer.lora is not set")
        if self.dtype is not None and self.format(is_lora) == "peft":
            raise ValueError(
                f"export.dtype={self.dtype!r}: an adapter is written in float32; set export.to='hf'"
            )

    def format(self, is_lora: bool) -> Literal["hf", "peft"]:
        """Returns what is written."""
        return self.to or ("peft" if is_lora else "hf")
