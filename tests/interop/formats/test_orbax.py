"""Native checkpoints describe themselves, and the steps of a run are found by number."""

import chex
import numpy as np
import pytest
from tiny import random_model

from jaxllm.interop import CheckpointError
from jaxllm.interop.formats import orbax
from jaxllm.params import named_parameters


@pytest.fixture(scope="module")
def model():
    return random_model(head_dim=8, num_layers=1)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("orbax") / "native"
    orbax.save(model, path)
    return path


def arrays_of(model) -> dict[str, np.ndarray]:
    return {name: np.asarray(v.get_value()) for name, v in named_parameters(model).items()}


def test_saved_model_loads_unchanged(model, folder):
    assert orbax.is_native(folder)
    again = orbax.load(folder)
    assert again.config == model.config
    chex.assert_trees_all_equal(arrays_of(again), arrays_of(model))


def test_arrays_are_read_box_by_box(model, folder):
    abstract, arrays = orbax.open_step(orbax.find_step(folder))
    assert abstract.config == model.config
    for name, array in arrays_of(model).items():
        box = [(0, max(size // 2, 1)) for size in array.shape]
        expected = array[tuple(slice(*bounds) for bounds in box)]
        chex.assert_trees_all_equal(np.asarray(arrays[name].read(box)), expected)


def test_step_is_found_by_its_number(folder):
    assert orbax.find_step(folder) == orbax.find_step(folder, 0)
    assert orbax.find_step(folder, 0).name == "0"
    with pytest.raises(CheckpointError, match="has no checkpoint of step 7; it has 0"):
        orbax.find_step(folder, 7)
    with pytest.raises(CheckpointError, match="is one checkpoint, not a run with a step 7"):
        orbax.find_step(orbax.find_step(folder), 7)


def test_other_folders_are_not_native(tmp_path):
    assert not orbax.is_native(tmp_path)
    assert not orbax.is_native(tmp_path / "nothing")
