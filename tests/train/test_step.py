"""Training steps: dropout by step and microbatch but not in evaluation, and position limits."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kinds import CONFIGS, batch_of
from tiny import TINY, random_model, random_of

from jaxllm.config import Config, ExpertsConfig, LayerKind, PositionConfig, with_fields
from jaxllm.params import map_parameters, parameter_shardings, split
from jaxllm.train import TrainConfig, make_mesh
from jaxllm.train.data.documents import DataConfig
from jaxllm.train.loss import LossConfig
from jaxllm.train.objective import next_token_loss
from jaxllm.train.optimizers.config import OptimizerConfig
from jaxllm.train.step import accumulate, make_steps

RATE = 0.3
BATCH = {
    "tokens": np.random.default_rng(0).integers(0, TINY.vocab_size, (4, 10)),
    "mask": np.ones((4, 9), np.int32),
}


def run(
    rate: float,
    *,
    seed: int = 0,
    microbatches: int = 1,
    start: int = 0,
    model: Config = TINY,
    batch: dict[str, np.ndarray] = BATCH,
) -> dict[str, float]:
    """The loss of one training step on a mesh, and the evaluation loss before it."""
    model = random_of(with_fields(model, dropout=rate))
    config = TrainConfig(
        output="unused",
        steps=10,
        batch_size=4,
        seq_len=9,
        accumulate=microbatches,
        seed=seed,
        model=model.config,
        data=DataConfig(text=("unused",)),
        optimizer=OptimizerConfig(warmup_steps=1),
    )
    mesh = make_mesh(fsdp=4, tensor=2)
    with jax.set_mesh(mesh):
        steps = make_steps(config, model, mesh)
        places = map_parameters(model, lambda name, _: parameter_shardings(model, mesh)[name])
        state = steps.init(jax.device_put(split(model)[1], places))
        held_out, targets = steps.evaluate(state.params, batch)
        _, metrics = steps.train(state._replace(step=jnp.int32(start)), batch)
    found = {name: float(metrics[name]) for name in ("loss", "expert_load") if name in metrics}
    return {"held out": float(held_out / targets), **found}


@pytest.fixture(scope="module")
def plain():
    return run(0.0)


@pytest.mark.exhaustive
def test_dropout_is_active_in_training_only(plain):
    found = run(RATE)
    assert found["held out"] == plain["held out"] == pytest.approx(plain["loss"], rel=1e-6)
    assert abs(found["loss"] / plain["loss"] - 1) > 1e-3


@pytest.mark.cases(0, exhaustive=1)
@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["each vector", "encoder-decoder"])
def test_dropout_of_other_model_kinds_is_active_in_training_only(kind):
    given = {"model": CONFIGS[kind], "batch": batch_of(kind)}
    none, found, again = run(0.0, **given), run(RATE, **given), run(RATE, **given, start=3)
    assert found["held out"] == again["held out"] == pytest.approx(none["held out"], rel=1e-6)
    losses = [none["loss"], found["loss"], again["loss"]]
    assert min(abs(a / b - 1) for a, b in itertools.combinations(losses, 2)) > 1e-3


@pytest.mark.exhaustive
def test_dropout_depends_on_seed_and_step():
    found = run(RATE)
    assert run(RATE) == found
    assert run(RATE, seed=1)["loss"] != found["loss"]
    assert run(RATE, start=3)["loss"] != found["loss"]


@pytest.mark.exhaustive
def test_every_microbatch_has_its_own_dropout_key():
    """The rows are equal, so a shared dropout mask would give equal losses."""
    bind, params = split(random_model(dropout=RATE))
    rows = {name: np.repeat(x[:1], 2, axis=0) for name, x in BATCH.items()}

    def loss(params, batch, key):
        return next_token_loss(bind(params), batch, LossConfig(chunk_tokens=512), key)[0]

    both = jax.jit(lambda key: accumulate(jax.value_and_grad(loss), params, rows, 2, key)[0])
    alone = jax.jit(loss)
    row = {name: x[:1] for name, x in rows.items()}
    key = jax.random.key(1)
    by_hand = [float(alone(params, row, own)) for own in jax.random.split(key, 2)]
    assert by_hand[0] != by_hand[1]
    assert float(both(key)) == pytest.approx(sum(by_hand), rel=1e-6)


def test_a_sequence_longer_than_the_learned_positions_is_rejected():
    model = random_model(positions=PositionConfig(kind="learned"), max_len=8)
    with pytest.raises(ValueError, match="a sequence of 9 tokens is longer than max_len=8"):
        next_token_loss(model, BATCH, LossConfig(chunk_tokens=512))
    longer = random_model(positions=PositionConfig(kind="learned"), max_len=9)
    next_token_loss(longer, BATCH, LossConfig(chunk_tokens=512))


def test_the_load_of_the_fullest_expert_is_a_metric(plain):
    experts = ExpertsConfig(num_experts=4, top_k=1, mlp_dim=16, router_bias=True)
    model = with_fields(TINY, experts=experts, pattern=(LayerKind(mlp="experts"),), num_layers=1)
    assert 1 < run(0.0, model=model, microbatches=2)["expert_load"] <= 4
    assert "expert_load" not in plain
