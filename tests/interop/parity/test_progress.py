"""Progress: every run of a comparison is announced, as many as expected."""

import pytest
from tiers import exhaustive

from jaxllm.interop.parity import compare
from jaxllm.interop.parity.execution.recipe import Recipe
from jaxllm.interop.parity.golden import check_pack, record_checkpoint
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


@pytest.mark.torch
@pytest.mark.parametrize("levels", [("logits",), *SLOW_LEVELS])
def test_packs_are_recorded_and_checked_in_as_many_runs_as_expected(levels, make_llama, tmp_path):
    checkpoint, pack = tmp_path / "llama", tmp_path / "pack"
    make_llama(num_hidden_layers=1).save_pretrained(checkpoint)
    options = {"levels": levels, "num_tokens": 300, "batch_size": 1, "recipe": Recipe(steps=2)}
    jobs = {
        "loading both sides": lambda: record_checkpoint(checkpoint, pack, **options),
        "loading the model": lambda: check_pack(pack, checkpoint),
    }
    for first, job in jobs.items():
        seen = []
        with following(lambda run, total, seen=seen: seen.append((run, total))):
            job()
        assert seen[0] == (first, None)
        assert {total for _, total in seen[1:]} == {len(seen) - 1}
