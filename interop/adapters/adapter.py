"""An adapter as plain data: its factors and fully trained parameters by our names, on the host."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from jaxllm.lora.attach import FACTORS, with_factors
from jaxllm.models import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
    """The factors and full modules that LoRA has trained for a model.

    Attributes:
        scales: by projection, such as `layers.0:32.attn.q_proj`: the scale of its factors' product.
        arrays: by parameter: both factors of each projection, and what was trained in full.
        base: the checkpoint that it belongs to, a path or a name on the hub; "" if unknown.
        dropout: that of its training.
        rslora: whether scales are alpha / sqrt(rank), not alpha / rank.
    """

    scales: Mapping[str, float]
    arrays: Mapping[str, np.ndarray]
    base: str = ""
    dropout: float = 0.0
    rslora: bool = False

    @property
    def full(self) -> dict[str, np.ndarray]:
        """The parameters that were trained in full."""
        return {name: x for name, x in self.arrays.items() if not name.endswith(FACTORS)}

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each projection's factors."""
        return {name: self.arrays[f"{name}.lora.a"].shape[-1] for name in self.scales}

    def attach(self, model: Model) -> Model:
        """Returns a model without weights that also has the adapter's factors, as shapes."""
        return with_factors(model, self.ranks, self.scales, self.dropout)
