"""Fixtures: a model and a training state with random moments, for checkpoint tests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, random_model

from jaxllm.models import Model
from jaxllm.params import split
from jaxllm.train import TrainConfig
from jaxllm.train.optimizers.optimizer import make_optimizer
from jaxllm.train.step import TrainState

RUN = TrainConfig(output="nowhere", steps=9, batch_size=8, seq_len=16, model=TINY)


@pytest.fixture(scope="module")
def saved_model() -> Model:
    """A model with random parameters."""
    return random_model()


@pytest.fixture(scope="module")
def state(saved_model) -> TrainState:
    """A state at step 3 with random moments."""
    params = split(saved_model)[1]
    rng = np.random.default_rng(1)
    moments = jax.tree.map(
        lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype) if x.ndim else x,
        make_optimizer(RUN.optimizer, RUN.steps, saved_model).init(params),
    )
    return TrainState(params, moments, jnp.asarray(3, jnp.int32))
