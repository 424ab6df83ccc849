"""Layout equality for every kind of model: a step on a mesh matches a single device."""

import dataclasses

import pytest
from kinds import CONFIGS, WAVES
from tiny import random_of

from jaxllm.train import TrainConfig
from jaxllm.train.data.tasks import TaskConfig
from jaxllm.train.verify.equality import compare_variants
from jaxllm.train.verify.variants import Variant

pytestmark = pytest.mark.usefixtures("really_compiling")

TOLERANCE = 1e-5  # relative, float32
ONE_MESH = (("fsdp", 4), ("tensor", 2))
ANOTHER = (("data", 2), ("fsdp", 2), ("expert", 2))
EXPERTS = {name: getattr(CONFIGS["each vector"], name) for name in ("pattern", "experts")}
KINDS = {
    "encoder-decoder": (CONFIGS["encoder-decoder"], "copy", 6, ONE_MESH, 2),
    "vectors given vectors": (
        dataclasses.replace(CONFIGS["vectors given vectors"], source_dim=5),
        *("copy", 6, ONE_MESH, 2),
    ),
    "pooled": (dataclasses.replace(CONFIGS["pooled"], output_dim=3), "sum", 6, ONE_MESH, 2),
    "experts": (dataclasses.replace(WAVES, **EXPERTS), "waves", 6, ANOTHER, 1),
    "sees images": (CONFIGS["sees images"], "colour", 4, ONE_MESH, 2),
}


@pytest.mark.cases(0, exhaustive=2)
@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_on_a_mesh_matches_a_single_device(kind):
    model, task, seq_len, mesh, accumulate = KINDS[kind]
    config = TrainConfig(
        output="nowhere",
        steps=10,
        batch_size=16,
        seq_len=seq_len,
        model=model,
        data=TaskConfig(task=task),
    )
    chosen = [Variant(mesh=mesh, accumulate=accumulate, loss_chunk=4)]
    found = compare_variants(config, random_of(model), chosen)
    assert found.first is None, found.summary
    (outcome,) = found.outcomes
    gradients = [d for d in outcome.differences if d.what != "update"]
    assert len(gradients) > 20
    assert max(d.measured for d in gradients) < TOLERANCE
