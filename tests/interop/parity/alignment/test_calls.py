"""Calls of a module: all are compared, each with its counterpart; what is not is named."""

import jax.numpy as jnp
import torch
from any_calls import LAYERS, TOKENS, Repeated, function

from jaxllm.interop.parity import compare
from jaxllm.interop.parity.alignment.calls import calls_of, of_call, without_call
from jaxllm.interop.parity.render.notes import notes
from jaxllm.numerics.distance import relative_l2

ROUNDS = ["block", "call 2: block", "call 3: block"]


def test_every_call_has_a_name_and_the_first_has_the_modules():
    assert [of_call("block", number) for number in range(3)] == ROUNDS
    assert {without_call(name) for name in ROUNDS} == {"block"}
    assert calls_of("block", ROUNDS[:2]) == ROUNDS[:2]
    assert calls_of("other", ROUNDS) == []


def test_every_call_is_compared_after_all_others_and_alone():
    report = compare(Repeated(), function(), TOKENS, levels=LAYERS)
    assert report.ok, report.first_divergence
    assert [tap.path for tap in report.taps] == [*ROUNDS, "logits"]
    assert all(tap.forced is not None for tap in report.taps)
    assert report.left_out == ()


def test_a_mistake_in_an_earlier_call_is_named_there():
    """The mistake cancels in what follows, so that only the second call shows it."""

    def apply(round_, y_BTD):
        return y_BTD * 1.01 if round_ == 1 else y_BTD

    report = compare(Repeated(), function(apply), TOKENS, levels=LAYERS)
    wrong = [tap.path for tap in report.taps if tap.is_wrong_itself]
    assert wrong == ["call 2: block"]
    assert report.first_divergence.path == "call 2: block"


def test_calls_that_one_side_lacks_are_named():
    report = compare(Repeated(), function(rounds=2), TOKENS, levels=LAYERS)
    assert "call 3: block (reference only)" in report.left_out
    assert any("call 3: block (reference only)" in note for note in notes(report))


def test_what_the_reference_never_computes_is_named():
    class Beside(Repeated):
        """Uses the weights of its module without calling it."""

        def forward(self, tokens):
            x, bare = self.table(tokens), self.block
            for _ in range(3):
                x = x + torch.tanh(x @ bare.weight.T + bare.bias)
            return self.out(x)

    report = compare(Beside(), function(), TOKENS, levels=("layers", "logits", "weights"))
    assert report.left_out == ("block",)
    assert any("block" in note and "Not compared" in note for note in notes(report))
    assert not report.ok  # nothing was compared at the level `layers`


def test_both_sides_compute_the_same():
    given = function()
    with torch.no_grad():
        expected = Repeated()(torch.tensor(TOKENS)).numpy()
    assert relative_l2(given.apply(given.params, jnp.asarray(TOKENS)), expected) <= 1e-6
