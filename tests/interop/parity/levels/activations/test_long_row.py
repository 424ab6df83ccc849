"""A longer row: drawn where windows are longer than the inputs, and where it is cheap."""

import numpy as np
import pytest
from tiny import random_model

from jaxllm.config import LayerKind
from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.alignment.prompt import FurtherText
from jaxllm.interop.parity.levels.activations import long_row as module
from jaxllm.interop.parity.levels.activations.long_row import PAST, long_row, spans_of
from jaxllm.interop.parity.levels.sides import Comparison


def windowed(window=400, **fields):
    kinds = (LayerKind(attention="window"), LayerKind())
    return random_model({"attention.window": window}, pattern=kinds, num_layers=2, **fields)


@pytest.fixture
def comparison(pair):
    def of(model, length, **given):
        inputs = Inputs(np.ones((2, length), np.int64), **given)
        return Comparison(reference=pair[0], model=model, inputs=inputs, levels=("logits",))

    return of


def test_windows_are_those_that_hide_something():
    assert spans_of(windowed()) == {"attention window": 400}
    assert spans_of(windowed(max_len=400)) == {}
    assert spans_of(random_model()) == {}


def test_a_row_past_the_window_is_drawn_only_if_no_input_reaches_it(comparison):
    found = long_row(comparison(windowed(), 320))
    assert found.inputs.target.shape == (1, 400 + PAST)
    assert found.unseen == ()
    assert long_row(comparison(windowed(), 401)) == (None, ())
    assert long_row(comparison(windowed(), 400)).inputs is not None


def test_the_row_is_text_where_the_inputs_are(comparison):
    text = FurtherText("text", lambda name, shape, number: np.full(shape, 7))
    found = long_row(comparison(windowed(), 320, further=text))
    assert set(found.inputs.target.ravel()) == {7}


def test_a_row_that_costs_too_much_is_named_instead(comparison, monkeypatch):
    monkeypatch.setattr(module, "MOST_SCORES", 1000)
    assert long_row(comparison(windowed(), 320)) == (None, ("the attention window of 400 tokens",))
    monkeypatch.undo()
    assert long_row(comparison(windowed(max_len=410), 320)).inputs.target.shape == (1, 410)
