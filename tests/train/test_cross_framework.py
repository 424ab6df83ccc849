"""Runs started from an AdamW state: config checks, written files, and reading the state back."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_model

from jaxllm.optimizer_state import AdamWState
from jaxllm.params import named_parameters
from jaxllm.train import ConfigError, TrainConfig, read_state, train, write_run
from jaxllm.train.data.documents import DataConfig
from jaxllm.train.mesh import MeshConfig
from jaxllm.train.optimizers.config import OptimizerConfig
from jaxllm.train.optimizers.schedule import make_schedule
from jaxllm.train.settings.logging import LoggingConfig

STEPS, TAKEN = 6, 4


@pytest.fixture
def make(tmp_path) -> Callable[..., TrainConfig]:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 60)

    def config(**optimizer: object) -> TrainConfig:
        return TrainConfig(
            output=str(tmp_path / "run"),
            steps=STEPS,
            batch_size=8,
            seq_len=16,
            init_from="elsewhere",
            data=DataConfig(text=(str(text),), held_out=0.0),
            optimizer=OptimizerConfig(**{"warmup_steps": 2, **optimizer}),
            mesh=MeshConfig(fsdp=4, tensor=2),
            logging=LoggingConfig(tensorboard=False),
        )

    return config


def model_of(config: TrainConfig):
    return random_model(vocab_size=256, head_dim=8, num_layers=2)


def state_for(config: TrainConfig, **changes: object) -> AdamWState:
    """A random AdamW state that matches the config."""
    settings, names = config.optimizer, named_parameters(model_of(config))
    rng = np.random.default_rng(0)
    moments = {
        name: rng.standard_normal(v.get_value().shape).astype(np.float32)
        for name, v in names.items()
    }
    state = AdamWState(
        step=TAKEN,
        mu=moments,
        nu={name: x**2 for name, x in moments.items()},
        learning_rate=float(make_schedule(settings, STEPS)(TAKEN)),
        b1=settings.b1,
        b2=settings.b2,
        eps=settings.eps,
        weight_decay={
            name: settings.weight_decay if "norm" not in name or settings.decay_all else 0.0
            for name in names
        },
    )
    return dataclasses.replace(state, **changes)


@pytest.mark.parametrize("decay_all", [False, True])
def test_a_written_state_is_read_back(make, decay_all):
    config = make(decay_all=decay_all)
    given = state_for(config)
    write_run(config, model_of(config), given)
    read = read_state(Path(config.output) / "checkpoints" / str(TAKEN))
    for field in ("step", "learning_rate", "b1", "b2", "eps", "weight_decay"):
        assert getattr(read, field) == getattr(given, field)
    for name in given.mu:
        box = [(0, size) for size in given.mu[name].shape]
        np.testing.assert_array_equal(read.mu[name].read(box), given.mu[name])
        np.testing.assert_array_equal(read.nu[name].read(box), given.nu[name])
    assert [file.name for file in Path(config.output).parent.iterdir()] == ["text.txt", "run"]


def test_norms_decay_only_with_decay_all():
    """With zero gradients, only weight decay changes a parameter."""
    from jaxllm.params import split
    from jaxllm.train.optimizers.optimizer import make_optimizer

    model = random_model(num_layers=2)
    _, params = split(model)
    zeros = jax.tree.map(jnp.zeros_like, params)
    moved = {}
    for decay_all in (False, True):
        optimizer = make_optimizer(OptimizerConfig(decay_all=decay_all), 10, model)
        state = jax.jit(optimizer.init)(params)
        updates, _ = jax.jit(optimizer.update)(zeros, state, params)
        moved[decay_all] = float(jnp.abs(updates["final_norm"]["scale"]).max())
        assert float(jnp.abs(updates["embed"]["embedding"]).max()) > 0
    assert moved[False] == 0 < moved[True]


@pytest.mark.exhaustive
def test_the_learning_rate_may_belong_to_the_last_step_or_the_next(make):
    config = make()
    schedule = make_schedule(config.optimizer, STEPS)
    write_run(config, model_of(config), state_for(config, learning_rate=float(schedule(TAKEN - 1))))
    assert train(config, resume=True).model is not None


def test_every_mismatch_is_reported_and_nothing_is_written(make):
    config = make()
    state = state_for(config, b1=0.8, eps=1e-6, learning_rate=1.0)
    state = dataclasses.replace(state, weight_decay={**state.weight_decay, "final_norm.scale": 0.1})
    with pytest.raises(ConfigError) as error:
        write_run(config, model_of(config), state)
    for message in (
        "optimizer.b1 is 0.9 in the config and 0.8 in the optimizer state",
        "optimizer.eps is 1e-08 in the config and 1e-06 in the optimizer state",
        "the weight decay of final_norm.scale is 0.0 in the config and 0.1 in the optimizer state",
        "the learning rate is 1 in the optimizer state, but the config's schedule gives",
    ):
        assert message in str(error.value)
    assert "b2" not in str(error.value)
    assert not Path(config.output).exists()


def test_a_finished_run_and_an_occupied_folder_are_rejected(make, tmp_path):
    config = make()
    with pytest.raises(ConfigError, match=r"steps=6 in the config, .* has already taken 6 steps"):
        write_run(config, model_of(config), state_for(config, step=6))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").touch()
    with pytest.raises(ConfigError, match="exists and is not an empty folder; choose a new one"):
        write_run(config, model_of(config), state_for(config))
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_a_failure_leaves_no_files_behind(make, tmp_path):
    """The config has both weights and a model, which is detected only after writing has begun."""
    config = make()
    model = model_of(config)
    config = dataclasses.replace(config, init_from=None, model=model.config)
    with pytest.raises(ConfigError, match="set init_from"):
        write_run(config, model, state_for(config))
    assert [file.name for file in tmp_path.iterdir()] == ["text.txt"]


def test_a_converted_model_has_no_optimizer_state(tmp_path):
    from jaxllm.interop import save_pretrained

    save_pretrained(random_model(head_dim=8), tmp_path / "native", format="native")
    with pytest.raises(ConfigError, match="holds a model without optimizer state"):
        read_state(tmp_path / "native" / "checkpoints" / "0")
