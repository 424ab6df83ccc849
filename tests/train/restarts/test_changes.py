"""Changes of the config of a resumed run: those that are allowed, and those that are reported."""

import dataclasses
import json

import pytest
from tiny import TINY

from jaxllm.train import TrainConfig
from jaxllm.train.config import to_dict
from jaxllm.train.data.documents import DataConfig
from jaxllm.train.loss import LossConfig
from jaxllm.train.mesh import MeshConfig
from jaxllm.train.optimizers.config import OptimizerConfig
from jaxllm.train.optimizers.schedule_config import PhaseConfig
from jaxllm.train.restarts.changes import FREE_ON_RESUME, find_changes
from jaxllm.train.settings.export import ExportConfig
from jaxllm.train.settings.logging import LoggingConfig
from jaxllm.train.speed.options import SpeedConfig

RUN = TrainConfig(
    output="runs/tiny",
    steps=20,
    batch_size=8,
    seq_len=32,
    model=TINY,
    data=DataConfig(text=("a.txt", "b/*.jsonl"), held_out=0.1),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=4),
)


def plain(config: TrainConfig) -> dict:
    """The config as it comes back from YAML or JSON."""
    return json.loads(json.dumps(to_dict(config)))


def test_an_unchanged_config_has_no_changes():
    assert find_changes(plain(RUN), RUN, 0) == []


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        (
            {"steps": 30},
            "steps: 20 in the checkpoint, 30 now; a run can be extended when it is finished",
        ),
        ({"seq_len": 64}, "seq_len: 32 in the checkpoint, 64 now"),
        (
            {"optimizer": dataclasses.replace(RUN.optimizer, b2=0.99)},
            "optimizer.b2: 0.95 in the checkpoint, 0.99 now",
        ),
        (
            {"model": dataclasses.replace(TINY, num_layers=5)},
            "model.num_layers: 3 in the checkpoint, 5 now",
        ),
        (
            {"data": dataclasses.replace(RUN.data, text=("a.txt",))},
            "data.text: ['a.txt', 'b/*.jsonl'] in the checkpoint, ['a.txt'] now",
        ),
        ({"dtype": "bfloat16"}, "dtype: None in the checkpoint, 'bfloat16' now"),
        ({"accumulate": 2}, "accumulate: 1 in the checkpoint, 2 now"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_change_that_affects_numbers_is_reported_with_both_values(changed, line):
    assert find_changes(plain(RUN), dataclasses.replace(RUN, **changed), 0) == [line]


def test_changes_of_where_and_how_a_run_runs_are_allowed():
    free = {
        "output": "elsewhere",
        "mesh": MeshConfig(data=8),
        "eval_every": 1,
        "eval_batches": 1,
        "save_every": 1,
        "keep": 9,
        "logging": LoggingConfig(every=1, tensorboard=True, wandb="project"),
        "export": ExportConfig(every=3),
        "speed": SpeedConfig(profile="1:2"),
        "strict": False,
        "loss": LossConfig(chunk_tokens=5),
        "allow": ("is_causal",),
    }
    assert find_changes(plain(RUN), dataclasses.replace(RUN, **free), 0) == []
    assert set(free) - {"loss"} | {"init_from", "loss.chunk_tokens"} == set(FREE_ON_RESUME)


def test_every_change_is_reported():
    now = dataclasses.replace(
        RUN, seed=3, steps=30, optimizer=dataclasses.replace(RUN.optimizer, eps=1e-6)
    )
    assert [line.partition(":")[0] for line in find_changes(plain(RUN), now, 0)] == [
        "steps",
        "optimizer.eps",
        "seed",
    ]


def test_only_a_finished_run_may_be_extended():
    phases = [PhaseConfig(stop=stop, learning_rate=1e-3) for stop in (4, RUN.steps, 40)]
    run = dataclasses.replace(RUN, optimizer=OptimizerConfig(phases=tuple(phases[:2])))
    longer = dataclasses.replace(run, steps=40, optimizer=OptimizerConfig(phases=tuple(phases)))
    other = dataclasses.replace(longer, optimizer=OptimizerConfig(phases=tuple(phases[1:])))
    names = [line.partition(":")[0] for line in find_changes(plain(run), other, RUN.steps)]
    assert names == ["optimizer.phases"]
    assert find_changes(plain(run), longer, RUN.steps) == []
    steps, _ = find_changes(plain(run), longer, RUN.steps - 1)
    assert steps == (
        f"steps: {RUN.steps} in the checkpoint, 40 now; a run can be extended when it is finished"
    )
    [shorter] = find_changes(plain(longer), dataclasses.replace(longer, steps=39), 40)
    assert shorter == "steps: 40 in the checkpoint, 39 now"
