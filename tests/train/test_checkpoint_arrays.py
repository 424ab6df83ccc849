"""Lazy access to checkpoint arrays: by name, by part and by layer."""

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from tiny import TINY

from jaxllm.errors import UserError
from jaxllm.orbax_layout import list_steps
from jaxllm.params import named_parameters, unstack_name
from jaxllm.train import TrainConfig
from jaxllm.train.checkpoint import open_checkpoints
from jaxllm.train.checkpoint_arrays import (
    FIRST_MOMENT,
    PARAMETER,
    SECOND_MOMENT,
    open_arrays,
    open_step,
    read_metadata,
)

RUN = TrainConfig(output="nowhere", steps=9, batch_size=8, seq_len=16, model=TINY)


@pytest.fixture(scope="module")
def step(saved_model, state, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with open_checkpoints(folder / "checkpoints", keep=2) as checkpoints:
        checkpoints.save(state, RUN, saved_model, {"train_tokens": "ab"})
    return list_steps(folder)[3]


def test_stored_parameters_are_read_back_exactly(step, saved_model):
    found = open_arrays(step, "model")
    expected = named_parameters(saved_model)
    assert set(found) == {(PARAMETER, name) for name in expected}
    for (_, name), array in found.items():
        value = np.asarray(expected[name].get_value())
        assert (array.shape, array.dtype) == (value.shape, value.dtype)
        np.testing.assert_array_equal(array.read(), value)
        box = [(size // 2, size) for size in array.shape]
        np.testing.assert_array_equal(array.read(box), value[tuple(slice(*b) for b in box)])


def test_every_layer_has_parameters_and_both_moments(step, saved_model, state):
    found = open_step(step)
    names = {own for name in named_parameters(saved_model) for own, _ in unstack_name(name)}
    for what in (PARAMETER, FIRST_MOMENT, SECOND_MOMENT):
        assert {name for kind, name in found if kind == what} == names
    assert "layers.1.attn.q_proj.kernel" in names
    moments = {np.asarray(x).tobytes() for x in jax.tree.leaves(state.optimizer)}
    assert found[FIRST_MOMENT, "embed.embedding"].read().tobytes() in moments
    assert found[SECOND_MOMENT, "embed.embedding"].read().tobytes() in moments
    kernel = named_parameters(saved_model)["layers.0:3.attn.q_proj.kernel"].get_value()
    for layer in range(TINY.num_layers):
        stored = found[PARAMETER, f"layers.{layer}.attn.q_proj.kernel"].read()
        np.testing.assert_array_equal(stored, kernel[layer])


def test_metadata_is_read_and_foreign_checkpoints_are_rejected(step, tmp_path):
    assert read_metadata(step)["data"] == {"train_tokens": "ab"}
    ocp.save_checkpointables(tmp_path / "other", {"model": {"x": np.ones(3)}})
    with pytest.raises(UserError, match="other is an Orbax checkpoint that was not written by"):
        read_metadata(tmp_path / "other")
