"""Abstract steps: batches have the shapes of the data, and meshes are checked before anything."""

import dataclasses

import numpy as np
import pytest
from kinds import CONFIGS
from planned_runs import TPU, run
from tiny import TINY

from jaxllm.models import build_abstract
from jaxllm.train.config import ConfigError
from jaxllm.train.data.documents import DataConfig
from jaxllm.train.data.preference.config import PreferencesConfig
from jaxllm.train.data.streams.windows import Windows
from jaxllm.train.data.tasks import TaskConfig
from jaxllm.train.mesh import MeshConfig, SlicesConfig
from jaxllm.train.planning.step_program import (
    abstract_batch,
    abstract_mesh,
    check_fits_topology,
    mesh_shape,
)

MESH = abstract_mesh({"data": 1, "fsdp": 8, "tensor": 1, "expert": 1})


@pytest.mark.parametrize("packing", ["separate", "joined"])
def test_a_batch_of_text_has_what_windows_have(packing):
    config = dataclasses.replace(run(), data=DataConfig(packing=packing))
    starts = np.zeros(1, np.int64) if packing == "separate" else None
    rows = Windows(np.zeros(2000, np.uint8), 64, starts).take(np.arange(16))
    found = abstract_batch(config, build_abstract(TINY), MESH)
    assert {name: (x.shape, x.dtype) for name, x in found.items()} == {
        name: (x.shape, x.dtype) for name, x in rows.items()
    }
    assert {x.sharding.shard_shape(x.shape)[0] for x in found.values()} == {2}


def test_a_batch_of_preferences_has_two_sequences_in_a_row():
    data = PreferencesConfig(preferences=("absent.jsonl",))
    found = abstract_batch(dataclasses.replace(run(), data=data), build_abstract(TINY), MESH)
    assert {name: x.shape for name, x in found.items()} == {
        **{"tokens": (16, 2, 65), "targets": (16, 2, 64), "segment_ids": (16, 2, 64)},
        "mask": (16,),
    }


def test_a_batch_of_a_task_has_what_the_task_draws():
    model = build_abstract(CONFIGS["sees images"])
    config = dataclasses.replace(run(model.config, seq_len=4), data=TaskConfig(task="colour"))
    assert {"images", "tokens", "mask"} <= abstract_batch(config, model, MESH).keys()


@pytest.mark.parametrize("kind", ["pooled", "vectors given vectors"])
def test_batches_of_vectors_have_their_widths(kind):
    model = build_abstract(CONFIGS[kind])
    found = abstract_batch(run(model.config), model, MESH)
    assert found.keys() == {"inputs", "targets", "mask"}
    assert found["mask"].shape == found["targets"].shape[:-1]


def test_a_bad_mesh_is_one_line():
    check_fits_topology(run(fsdp=8), TPU)
    with pytest.raises(
        ConfigError, match="the mesh fsdp=4 needs 4 devices, but v5p:2x2x2 has 8"
    ) as error:
        check_fits_topology(run(fsdp=4), TPU)
    assert "\n" not in str(error.value)
    sliced = dataclasses.replace(run(fsdp=8), mesh=MeshConfig(fsdp=8, dcn=SlicesConfig(fsdp=2)))
    with pytest.raises(ConfigError, match=r"mesh\.dcn: a topology is one slice"):
        check_fits_topology(sliced, TPU)
    with pytest.raises(ConfigError, match="= 12 sequences is not divisible by data x fsdp = 8"):
        check_fits_topology(run(fsdp=8, batch_size=12), TPU)


def test_mesh_sizes_are_in_the_order_of_the_axes():
    assert list(mesh_shape(run(tensor=2, fsdp=4)).items())[1:4] == [
        *(("fsdp", 4), ("sequence", 1), ("tensor", 2))
    ]
