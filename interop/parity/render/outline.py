"""Groups activations by layer and by name in the layer, from their paths."""

import dataclasses
import re
from collections.abc import Iterable

from jaxllm.interop.parity.report.activation_rows import TapResult

_IN_A_LAYER = re.compile(r"(.*?\.\d+)(?:\.(.+))?")


@dataclasses.dataclass(frozen=True)
class Outline:
    """Activations within layers, by layer and name, and those before and after all layers."""

    before: tuple[TapResult, ...]
    layers: dict[str, dict[str, TapResult]]  # as in `["layers.7"]["mlp"]`
    after: tuple[TapResult, ...]

    @property
    def activations(self) -> tuple[str, ...]:
        """Names in all layers in execution order, each after its predecessor in its layer."""
        order: list[str] = []
        for taps in self.layers.values():
            place = 0
            for name in taps:
                if name not in order:
                    order.insert(place, name)
                place = order.index(name) + 1
        return tuple(order)


def outline(taps: Iterable[TapResult]) -> Outline:
    """Groups activations by layer; the output of a whole layer is named `output`."""
    before: list[TapResult] = []
    after: list[TapResult] = []
    layers: dict[str, dict[str, TapResult]] = {}
    for tap in taps:
        if found := _IN_A_LAYER.fullmatch(tap.path):
            layer, name = found.groups()
            layers.setdefault(layer, {})[name or "output"] = tap
        else:
            (after if layers else before).append(tap)
    return Outline(tuple(before), layers, tuple(after))
