"""Mutations of generation: wrong continuations although every forward pass is right."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import jax.numpy as jnp

from jaxllm.config import DecoderConfig
from jaxllm.generation import beam, loop
from jaxllm.interop.parity.levels import generation

from .mutation import Mutation


def regenerated(
    name: str, place: str, owner: Any, attribute: str, wrong: Callable[[Callable], Callable]
) -> Mutation:
    """Replaces a function used by generation by `wrong(function)`, and recompiles."""
    original = getattr(owner, attribute)

    @contextmanager
    def patch(config: DecoderConfig) -> Iterator[None]:
        _forget_programs(owner)
        try:
            with mock.patch.object(owner, attribute, wrong(original)):
                yield
        finally:
            _forget_programs(owner)

    return Mutation(name=name, patch=patch, signs=lambda config: {"generate": place})


def _forget_programs(owner: Any) -> None:
    """Clears the compiled programs, so that they are recompiled with or without the bug."""
    for compiled in vars(owner).values():
        if hasattr(compiled, "clear_cache"):
            compiled.clear_cache()


def padding_counts(original: Callable) -> Callable:
    """Counts the padding of a prompt in the positions of new tokens."""

    def prefill(model, tokens_BT, *args):
        start = original(model, tokens_BT, *args)
        return start._replace(lengths_B=jnp.full_like(start.lengths_B, tokens_BT.shape[1]))

    return prefill


def one_more(original: Callable) -> Callable:
    """Makes `top_k` keep one token too many."""

    def filtered(sampling, logits_BV):
        return original(dataclasses.replace(sampling, top_k=sampling.top_k + 1), logits_BV)

    return filtered


GENERATION_BUGS = (
    regenerated("padding counted in positions", "generate.greedy", loop, "prefill", padding_counts),
    regenerated(
        "padding counted in positions of beams", "generate.beams", beam, "prefill", padding_counts
    ),
    regenerated("top-k off by one", "generate.filtered", generation, "filter_logits", one_more),
)
