"""Adafactor: the trajectory of transformers', and state by row and column that is sharded."""

import jax
import pytest
from jax.sharding import AxisType
from tiny import TINY
from trajectories import compare, decayed
from transformers.optimization import Adafactor

from jaxllm.models import build_abstract
from jaxllm.params import split
from jaxllm.train.optimizers.config import OptimizerConfig
from jaxllm.train.optimizers.optimizer import make_optimizer, optimizer_shardings

CONFIG = OptimizerConfig(
    **{"name": "adafactor", "learning_rate": 0.01, "decay": "constant", "weight_decay": 0.1},
    clip_norm=None,
)


def test_a_hundred_steps_match_transformers():
    def make(theirs):
        options = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
        return [Adafactor(decayed(theirs, 0.1), lr=0.01, **options)]

    compare(CONFIG, make, limit=5e-5)


@pytest.mark.parametrize("field", ["rows", "columns"])
def test_sums_have_the_letters_that_are_left(field):
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    model = build_abstract(TINY)
    optimizer = make_optimizer(CONFIG, 10, model)
    placed = optimizer_shardings(optimizer, split(model)[1], model, mesh)
    state = next(
        part
        for part in jax.tree.leaves(placed, is_leaf=lambda part: hasattr(part, field))
        if hasattr(part, field)
    )
    spec = getattr(state, field)["layers"]["0:3"]["attn"]["q_proj"]["kernel"].spec
    assert tuple(spec) == {"rows": (None, "fsdp"), "columns": (None, "tensor", None)}[field]
    assert state.whole["layers"]["0:3"]["attn"]["q_proj"]["kernel"].is_fully_replicated
