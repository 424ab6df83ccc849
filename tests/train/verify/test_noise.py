"""Equivalent evaluations of a step: shuffled dimensions are consistent and can be restored."""

import dataclasses

import chex
import numpy as np
import pytest
from kinds import CONFIGS, B, T, batch_of
from tiny import TINY, random_of

from jaxllm.config import PositionConfig
from jaxllm.models import build_abstract
from jaxllm.params import named_parameters, split, unstack_name
from jaxllm.train import TrainConfig
from jaxllm.train.verify.noise import Shuffle
from jaxllm.train.verify.variants import Program, Variant, by_name


def weights_of(config) -> dict[str, np.ndarray]:
    """Random weights by name, layers unstacked."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, variable in named_parameters(build_abstract(config)).items():
        for own, layer in unstack_name(name):
            shape = variable.get_value().shape
            arrays[own] = rng.standard_normal(shape if layer is None else shape[1:])
    return arrays


def undone(shuffle: Shuffle, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    @dataclasses.dataclass(frozen=True)
    class Step:
        """The part of a step that `Shuffle.undo` uses."""

        gradient: dict

        def _asdict(self):
            return {"gradient": self.gradient}

        def _replace(self, **changes):
            return dataclasses.replace(self, **changes)

    return shuffle.undo(Step(arrays)).gradient


def test_a_shuffle_permutes_weights_and_undo_restores_them():
    weights = weights_of(TINY)
    shuffle = Shuffle(TINY, np.random.default_rng(1))
    shuffled = shuffle.apply(weights)
    assert shuffled.keys() == weights.keys()
    for name, x in weights.items():
        assert not np.array_equal(shuffled[name], x), name
        np.testing.assert_array_equal(np.sort(shuffled[name], None), np.sort(x, None))
    chex.assert_trees_all_equal(undone(shuffle, shuffled), weights)


def test_dimensions_with_one_letter_share_a_permutation():
    """Otherwise it would be another model: F is an output of up_proj and an input of down_proj."""
    weights = weights_of(TINY)
    shuffled = Shuffle(TINY, np.random.default_rng(1)).apply(weights)
    products = [
        w["layers.0.mlp.up_proj.kernel"] @ w["layers.0.mlp.down_proj.kernel"]
        for w in (weights, shuffled)
    ]
    np.testing.assert_allclose(np.sort(products[0], None), np.sort(products[1], None), atol=1e-12)


@pytest.mark.parametrize("positions", ["rope", "sinusoidal"])
def test_sinusoidal_positions_fix_the_embedding_order(positions):
    config = dataclasses.replace(TINY, positions=PositionConfig(kind=positions))
    weights = weights_of(config)
    shuffled = Shuffle(config, np.random.default_rng(1)).apply(weights)
    stays = np.array_equal(shuffled["embed.embedding"], weights["embed.embedding"])
    assert stays == (positions == "sinusoidal")


def test_a_shuffled_model_of_images_is_the_same_model():
    """The image encoder reshapes its dimensions, so that their order is part of the model."""
    model = random_of(CONFIGS["sees images"])
    weights = {name: np.array(x) for name, x in by_name(split(model)[1]).items()}
    run = {"output": "x", "steps": 1, "batch_size": B, "seq_len": T}
    program = Program(TrainConfig(**run, model=model.config), Variant())
    shuffle = Shuffle(model.config, np.random.default_rng(1))
    batch = batch_of("sees images")
    steps = program(weights, batch), program(shuffle.apply(weights), batch)
    np.testing.assert_allclose(steps[1].grad_norm, steps[0].grad_norm, rtol=1e-5)
