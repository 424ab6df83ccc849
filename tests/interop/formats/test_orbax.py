"""Native checkpoints describe themselves, and the steps of a run are found by number."""

import json
import shutil

import chex
import numpy as np
import pytest
from tiny import random_model

from jaxllm.checkpointing.orbax_layout import METADATA_FILE
from jaxllm.errors import OTHER_VERSION
from jaxllm.interop import CheckpointError
from jaxllm.interop.formats import orbax
from jaxllm.interop.inspection.inspect import inspect
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


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda about: about["config"].update(new_field=1), "unknown field 'new_field'"),
        (lambda about: about["config"].update(embed_dim="wide"), "config: embed_dim='wide'"),
        (lambda about: about["config"].pop("embed_dim"), "config: embed_dim is missing"),
        (lambda about: about.pop("config"), "config is missing"),
        (lambda about: about.update(config=None), "config is None, not a group of fields"),
        (lambda about: about.update(config=[]), r"config is \[\], not a group of fields"),
        (lambda about: about.pop("origin"), "origin is missing"),
        (lambda about: about.update(origin={"family": "f"}), "origin is {'family': 'f'}; it must"),
        (
            lambda about: about["config"].update(embed_dim=64),
            r"embed.embedding: \(96, 32\) stored, \(96, 64\) by the config",
        ),
        (
            lambda about: about["config"]["head"].update(tied=True),
            r"lm_head.kernel: .* stored, none by the config",
        ),
    ],
)
def test_a_config_that_this_version_cannot_read_is_explained(folder, tmp_path, change, problem):
    step = shutil.copytree(folder, tmp_path / "native") / "checkpoints" / "0"
    metadata = json.loads((step / METADATA_FILE).read_text())
    del metadata["custom_metadata"]["jaxllm"]["digests"]  # as another version may write none
    change(metadata["custom_metadata"]["jaxllm"])
    (step / METADATA_FILE).write_text(json.dumps(metadata))
    for read in (orbax.load, orbax.open_step):
        with pytest.raises(CheckpointError, match=problem) as error:
            read(step)
        assert str(step) in str(error.value)
        assert error.value.problems[-1] == OTHER_VERSION
    assert OTHER_VERSION in inspect(step).problems
