"""Parameters in two parts: those that are trained, and the frozen ones of a base."""

from flax import nnx

from jaxllm.params import Params

from .attach import is_trained
from .config import LoraConfig


def partition(params: Params, lora: LoraConfig | None) -> tuple[Params, Params]:
    """Splits parameters, or a tree like them, into the trained and the frozen ones."""
    if lora is None:
        return params, {}
    parts: tuple[dict, dict] = ({}, {})
    for path, leaf in nnx.traversals.flatten_mapping(params).items():
        parts[not is_trained(".".join(map(str, path)), lora)][path] = leaf
    trained, frozen = map(nnx.traversals.unflatten_mapping, parts)
    return trained, frozen


def join(trained: Params, frozen: Params) -> Params:
    """Joins what `partition` split."""
    if not frozen:
        return trained
    flat = nnx.traversals.flatten_mapping
    return nnx.traversals.unflatten_mapping({**flat(trained), **flat(frozen)})
