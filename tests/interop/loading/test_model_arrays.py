"""A model's arrays are the same whether read from memory or from any format."""

import chex
import numpy as np
import pytest
from tiny import random_model

from jaxllm.interop import CheckpointError, save_pretrained
from jaxllm.interop.loading.model_arrays import arrays_of_model, open_model_arrays


@pytest.fixture(scope="module")
def model():
    return random_model(head_dim=8, num_layers=2)


def read(parameters) -> dict[str, np.ndarray]:
    return {name: np.array(a.read(a.whole)) for name, a in parameters.arrays.items()}


@pytest.mark.parametrize("form", ["hf", "meta", "native"])
def test_checkpoint_has_the_arrays_of_the_saved_model(model, tmp_path, form):
    save_pretrained(model, tmp_path / form, format=form)
    found = open_model_arrays(tmp_path / form)
    assert found.config.embed_dim == model.config.embed_dim
    assert all(file.is_file() for file in found.files)
    assert not found.span_processes
    chex.assert_trees_all_equal(read(found), read(arrays_of_model(model)))


def test_cast_changes_arrays_and_config(model):
    narrow = arrays_of_model(model).astype("bfloat16")
    assert {array.dtype.name for array in narrow.arrays.values()} == {"bfloat16"}
    assert arrays_of_model(model).astype(None).arrays.keys() == narrow.arrays.keys()
    with pytest.raises(ValueError, match="dtype='int8' is not one of"):
        arrays_of_model(model).astype("int8")


def test_only_runs_have_steps(model, tmp_path):
    save_pretrained(model, tmp_path / "hf")
    with pytest.raises(CheckpointError, match="is not a run, so it has no step 3"):
        open_model_arrays(tmp_path / "hf", step=3)
