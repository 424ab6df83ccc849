"""References with an adapter of PEFT: their tensors by the base's names, and LoRA's factors."""

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from jaxllm.errors import UserError
from jaxllm.interop.adapters.peft_config import check_peft_fields
from jaxllm.interop.adapters.peft_reading import factor_keys, factors_of
from jaxllm.interop.adapters.places import find_places, group_places, module_rules
from jaxllm.interop.formats.lazy_tensor import from_array
from jaxllm.lora.attach import FACTORS, projections, without_factors
from jaxllm.models import Model

from .overrides import attribute

FACTOR = re.compile(r"\.(lora_[AB])\.[^.]+\.weight$")  # of a tensor's name, with the adapter's
TRAINED = re.compile(r"\.modules_to_save\.[^.]+\.")  # of a module that is trained in full
WRAPPED = re.compile(r"(\.base_layer)+\.")  # around a module that is adapted, also several times
INSIDE = "_jaxllm_adapter"  # attribute of the model in a PeftModel: the name of its adapter


def base_name(name: str) -> str | None:
    """Returns what the base calls a tensor; None if it has no such tensor."""
    if FACTOR.search(name) or ".original_module." in f".{name}":
        return None
    return WRAPPED.sub(".", TRAINED.sub(".", name))


def is_adapted(reference: Any) -> bool:
    """Whether a reference has an adapter; true inside `opened`."""
    return hasattr(reference, INSIDE)


def is_trained(reference: Any, name: str) -> bool:
    """Whether a parameter of the reference is trained: with an adapter, only what it has."""
    return not is_adapted(reference) or bool(FACTOR.search(name) or TRAINED.search(name))


def state_of(reference: Any) -> dict[str, Any]:
    """Returns the reference's state dict; that of an adapted one by the base's names."""
    state = reference.state_dict()
    if not is_adapted(reference):
        return state
    return by_base_name(state)


def by_base_name(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tensors that a base has, by its names."""
    named = ((base_name(name), tensor) for name, tensor in tensors.items())
    return {name: tensor for name, tensor in named if name is not None}


def is_peft(reference: Any) -> bool:
    """Whether a reference is a PeftModel."""
    return hasattr(reference, "peft_config") and hasattr(reference, "get_base_model")


@contextmanager
def opened(reference: Any) -> Iterator[Any]:
    """Context in which the model inside a PeftModel takes its place; other references stay.

    Yields:
        The model of transformers, whose adapted modules have the names of the base's.

    Raises:
        CheckpointError: the adapter has what jaxllm cannot compute; lists it.
        UserError: it is merged, or not the only active one.
    """
    if not is_peft(reference):
        yield reference
        return
    active = list(reference.active_adapters)
    if len(active) != 1:
        raise UserError(
            f"the reference has the active adapters {', '.join(active) or 'none'}; activate one"
        )
    check_peft_fields(reference.peft_config[active[0]].to_dict(), "the reference")
    base = reference.get_base_model()
    for name, module in base.named_modules():
        if hasattr(module, "lora_A") and (module.merged or module.disable_adapters):
            raise UserError(
                f"{name} of the reference has its adapter merged or disabled: give a PeftModel as "
                "it is loaded"
            )
    marked: AbstractContextManager[Any] = attribute(base, INSIDE, active[0])
    with marked:
        yield base


def find_scales(reference: Any) -> dict[str, float]:
    """Returns the factor of each adapted module's low-rank product, as the reference has it."""
    adapter = getattr(reference, INSIDE)
    return {
        name: float(module.scaling[adapter])
        for name, module in reference.named_modules()
        if hasattr(module, "lora_A") and adapter in module.scaling
    }


class Factors:
    """LoRA's factors of an adapted reference, in the names and layouts of the JAX model.

    Args:
        reference: the reference.
        model: the JAX model, its layers not stacked.
    """

    def __init__(self, reference: Any, model: Model):
        base = without_factors(model)
        base.origin = model.origin
        _, rules = module_rules(base)
        self._places = group_places(find_places(base, rules))
        self._model, self._scales = base, find_scales(reference)
        given = {name: x.detach() for name, x in reference.named_parameters()}
        self._given = {_saved_name(name): x for name, x in given.items() if FACTOR.search(name)}

    @property
    def shared(self) -> list[str]:
        """The modules whose projections share a factor, which the model has one by one."""
        return [
            own[0].module
            for own in self._places.values()
            if len({place.projection for place in own}) > 1 and factor_keys(own[0], self._given)
        ]

    def arrays(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns factors, or gradients like them, from those of the reference."""
        return self._read(tensors)[1]

    def scales(self, tensors: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Returns the scale of each projection."""
        return self._read(tensors)[0]

    def _read(
        self, tensors: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        stored = {
            _saved_name(name): from_array(x) for name, x in tensors.items() if FACTOR.search(name)
        }
        return factors_of(
            self._places, stored, self._model, lambda module, _: self._scale(module) or 0.0
        )

    def _scale(self, module: str) -> float | None:
        """Returns the scale of a module; of experts, that of the module that holds them."""
        return self._scales.get(module, self._scales.get(module.rpartition(".")[0]))


def _saved_name(name: str) -> str:
    """Returns the name of a factor in PEFT's files, which leave out that of the adapter."""
    return FACTOR.sub(r".\1.weight", name)


def our_factors(model: Model) -> dict[str, float]:
    """Returns the scale of each projection of a model that has factors."""
    return {
        name: module.lora.scale
        for name, module in projections(model).items()
        if module.lora is not None
    }


def is_factor(name: str) -> bool:
    """Whether a parameter of the JAX model is one of LoRA's factors."""
    return name.endswith(FACTORS)
