"""A model remembers the checkpoint that it was loaded from, through JSON as well."""

import dataclasses
import json

import pytest
from tiny import random_model

from jaxllm.checkpoint_origin import Origin
from jaxllm.params import describe, from_description

ORIGIN = Origin(family="llama", config='{"rms_norm_eps": 1e-6}', layout="{}", directory="/models")


@pytest.mark.parametrize("origin", [None, ORIGIN])
def test_it_comes_back_from_the_description_of_a_model(origin):
    """The metadata of a native checkpoint is JSON."""
    model = random_model()
    model.origin = origin
    description = json.loads(json.dumps(describe(model)))
    assert from_description(description).origin == origin


def test_it_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ORIGIN.family = "gpt2"
