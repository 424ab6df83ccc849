"""Results become plain data: strings, numbers, lists, dicts and arrays."""

import dataclasses
from typing import NamedTuple

import numpy as np

from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.recording.plain import plain
from jaxllm.interop.parity.recording.sample import Sample


@dataclasses.dataclass
class Found:
    inputs: Inputs
    ties: frozenset
    sample: Sample | None
    floor: float


class Named(NamedTuple):
    prompts: list[int]


def test_a_dataclass_becomes_plain_data():
    inputs = Inputs(np.array([[1, 2]]))
    found = plain(Found(inputs, frozenset({(2, 1), (0, 5)}), Sample((0, 4), 7), 0.5))
    assert found["inputs"].keys() == {"target"}
    assert found["inputs"]["target"] is inputs.target
    assert found["ties"] == [(0, 5), (2, 1)]
    assert found["sample"] == {"positions": (0, 4), "features": 7}
    assert found["floor"] == 0.5
    assert plain(Found(inputs, frozenset(), None, 0.0))["sample"] is None


def test_a_named_tuple_becomes_plain_data():
    assert plain(Named([1, 2])) == {"prompts": [1, 2]}
