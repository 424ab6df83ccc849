"""Checkpoints of a run: the same bits come back, the newest few are kept, none is written twice."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from tiny import TINY

from jaxllm.train import TrainConfig
from jaxllm.train.checkpoint import open_checkpoints
from jaxllm.train.config import to_dict

RUN = TrainConfig(output="nowhere", steps=9, batch_size=8, seq_len=16, model=TINY)


def after(state, step: int):
    return state._replace(step=jnp.asarray(step, jnp.int32))


def test_no_bit_differs_when_a_state_comes_back(saved_model, state, tmp_path):
    with open_checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        assert checkpoints.latest is None
        checkpoints.save(state, RUN, saved_model, {"train_tokens": "ab"})
    with open_checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        assert checkpoints.latest == 3
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        found = checkpoints.load(abstract)
        about = checkpoints.read_metadata()
    assert jax.tree.structure(found) == jax.tree.structure(state)
    for ours, saved in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
        assert ours.dtype == saved.dtype
        np.testing.assert_array_equal(ours, saved)
    assert about["data"] == {"train_tokens": "ab"}
    assert about["run"].keys() == to_dict(RUN).keys()
    assert about["run"]["steps"] == RUN.steps


def test_the_newest_few_are_kept_and_none_is_written_twice(saved_model, state, tmp_path):
    folder = tmp_path / "checkpoints"
    with open_checkpoints(folder, keep=2) as checkpoints:
        for step in (1, 2, 3, 3):
            run = dataclasses.replace(RUN, seed=step)
            checkpoints.save(after(state, step), run, saved_model, {})
    assert {path.name for path in folder.iterdir() if path.name.isdigit()} == {"2", "3"}
