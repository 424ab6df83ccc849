"""Progress: every run of a comparison is announced, as many as expected."""

import pytest
from tiers import exhaustive

from jaxllm.interop.parity import compare
from jaxllm.interop.parity.execution.recipe import Recipe
from jaxllm.interop.parity.progress import announce, expecting, following

SLOW_LEVELS = exhaustive([["layers", "logits"], ["curve", "generate"]])


def test_runs_are_announced_to_the_follower_alone():
    seen = []
    announce("nobody follows")
    with following(lambda run, total: seen.append((run, total))):
        announce("first")
        with expecting(2):
            announce("second")
    announce("nobody follows")
    assert seen == [("first", None), ("second", 2)]


@pytest.mark.torch
@pytest.mark.parametrize(
    "levels",
    [("config", "weights"), ("logits",), *SLOW_LEVELS],
)
def test_a_comparison_has_as_many_runs_as_expected(levels, make_llama, convert, tokens):
    reference = make_llama(num_hidden_layers=1)
    seen = []
    with following(lambda run, total: seen.append((run, total))):
        compare(
            reference,
            convert(reference),
            tokens[:1, :32],
            levels=levels,
            recipe=Recipe(steps=2),
        )
    assert {total for _, total in seen} <= {len(seen)}
    assert len(dict(seen)) == len(seen), "every run has a name of its own"
