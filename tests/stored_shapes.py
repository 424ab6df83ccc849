"""The tensors that rules name, and those of a PyTorch model: names and shapes."""

from collections.abc import Callable, Iterable, Mapping

import torch

from jaxllm.interop.rules.rule import Rule

Shapes = dict[str, tuple[int, ...]]


def shapes_in_rules(rules: Iterable[Rule], sizes: Mapping[str, int]) -> Shapes:
    """Every stored tensor that the rules name, on the layers where they hold."""
    return {
        name: rule.stored.shape(sizes)
        for rule in rules
        for name, index in rule.stored.names(sizes)
        if rule.layers is None or index[rule.layered[1]] in rule.layers
    }


def shapes_in_model(build: Callable[[], torch.nn.Module]) -> Shapes:
    """The state dict of a model that is built without memory for its numbers."""
    with torch.device("meta"):
        model = build()
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
