"""The arrays of a run's checkpoint: the same bits, whole, in boxes and layer by layer."""

from pathlib import Path

import numpy as np
import pytest
from tiny import TINY

from jaxllm.errors import CheckpointError
from jaxllm.interop import save_pretrained
from jaxllm.params import named_parameters
from jaxllm.train import TrainConfig
from jaxllm.train.checkpoint import open_checkpoints
from jaxllm.train.checkpoint_arrays import (
    FIRST_MOMENT,
    PARAMETER,
    SECOND_MOMENT,
    open_arrays,
    open_step,
)

RUN = TrainConfig(output="nowhere", steps=9, batch_size=8, seq_len=16, model=TINY)
KERNEL = "mlp.up_proj.kernel"


@pytest.fixture(scope="module")
def step(saved_model, state, tmp_path_factory) -> Path:
    """The checkpoint of a run."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with open_checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save(state, RUN, saved_model, {"train_tokens": "ab"})
    return folder / "3"


def test_parameters_are_those_of_the_model(step, saved_model):
    found = open_arrays(step, "model")
    expected = named_parameters(saved_model)
    assert found.keys() == {(PARAMETER, name) for name in expected}
    for (_, name), array in found.items():
        value = np.asarray(expected[name].get_value())
        assert (array.dtype, array.shape) == (value.dtype, value.shape)
        np.testing.assert_array_equal(array.read(), value)


def test_moments_go_by_the_names_of_their_parameters(step, saved_model):
    found = open_arrays(step, "optimizer")
    for what in (FIRST_MOMENT, SECOND_MOMENT):
        assert {name for kind, name in found if kind == what} == set(named_parameters(saved_model))
    others = {name for kind, name in found if kind not in (FIRST_MOMENT, SECOND_MOMENT)}
    assert all(name.endswith("count") for name in others)
    [name] = (name for name in named_parameters(saved_model) if name.endswith(KERNEL))
    moments = (found[what, name].read() for what in (FIRST_MOMENT, SECOND_MOMENT))
    assert not np.array_equal(*moments)


def test_a_box_is_a_part_of_the_whole(step):
    array = open_arrays(step, "model")[PARAMETER, "embed.embedding"]
    np.testing.assert_array_equal(array.read([(5, 40), (3, 4)]), array.read()[5:40, 3:4])


def test_layers_of_a_stack_are_arrays_of_their_own(step):
    whole, single = open_arrays(step, "model"), open_step(step)
    stacked = whole[PARAMETER, f"layers.0:{TINY.num_layers}.{KERNEL}"].read()
    for layer in range(TINY.num_layers):
        array = single[PARAMETER, f"layers.{layer}.{KERNEL}"]
        assert array.shape == stacked.shape[1:]
        np.testing.assert_array_equal(array.read(), stacked[layer])
    assert not any(":" in name for _, name in single)
    assert (FIRST_MOMENT, f"layers.1.{KERNEL}") in single


def test_a_missing_item_is_reported(saved_model, tmp_path):
    save_pretrained(saved_model, tmp_path / "native", format="native")
    with pytest.raises(CheckpointError, match=r"0:\n  it has no optimizer"):
        open_step(tmp_path / "native" / "checkpoints" / "0")
