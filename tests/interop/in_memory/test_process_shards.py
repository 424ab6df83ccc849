"""Tensors sharded over the processes of torch.distributed: every process reads every box."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from together import free_port

from jaxllm.interop import CheckpointError
from jaxllm.interop.in_memory.process_shards import gather_shards, is_sharded
from jaxllm.interop.in_memory.state_dict import read_state_dict

# Four processes; sizes that do not divide, replicas, both dimensions, FSDP over TP, FSDP 1.
READ = """
import os, warnings
warnings.filterwarnings("ignore")
import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor import Partial
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from jaxllm.interop import CheckpointError
from jaxllm.interop.in_memory.state_dict import read_state_dict
from jaxllm.interop.loading.streaming.chunk_reader import Reader, chunks
from jaxllm.interop.rules.boxes import boxes, slices

dist.init_process_group("gloo")
rank = dist.get_rank()
mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "tp"))
whole = torch.randn(11, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
given = {
    "rows": [Shard(0), Replicate()],
    "both": [Shard(0), Shard(1)],
    "twice": [Shard(0), Shard(0)],
    "columns": [Replicate(), Shard(1)],
}
state = {name: distribute_tensor(whole, mesh, placed) for name, placed in given.items()}
expected = dict.fromkeys(given, whole)
torch.manual_seed(1)
linear = nn.Linear(6, 12)
expected["weight"], expected["bias"] = (p.detach().clone() for p in linear.parameters())
parallelize_module(linear, mesh["tp"], ColwiseParallel())
fully_shard(linear, mesh=mesh["fsdp"])
state |= linear.state_dict()
torch.manual_seed(2)
old = nn.Linear(5, 7)
expected["old.weight"], expected["old.bias"] = (p.detach().clone() for p in old.parameters())
wrapped = FullyShardedDataParallel(old, device_id=torch.device("cpu"), use_orig_params=True)
with FullyShardedDataParallel.state_dict_type(wrapped, StateDictType.SHARDED_STATE_DICT):
    state |= {"old." + name: value for name, value in wrapped.state_dict().items()}
assert isinstance(state["old.weight"], ShardedTensor) and isinstance(state["weight"], DTensor)
expected["plain"] = state["plain"] = torch.arange(3.0)

found = read_state_dict(state)
assert list(found) == list(state)
with Reader() as reader:
    for name, tensor in found.items():
        numbers = np.empty(tensor.shape, tensor.dtype)
        for box in chunks(tensor, 9 * tensor.dtype.itemsize):
            numbers[slices(box)] = reader.read(tensor, box)
        np.testing.assert_array_equal(numbers.astype(float), expected[name].double().numpy(), name)
        assert tensor.is_collective == (name != "plain")
rows = found["rows"].rows("rows#k", 3, 5)
np.testing.assert_array_equal(rows.read([(1, 4), (2, 6)]).astype(float), whole[4:7, 2:6].double())

partial = DTensor.from_local(whole, mesh, [Partial(), Replicate()], run_check=False)
own = {"p": partial, f"of.{rank}": state["rows"]}
try:
    read_state_dict(own)
except CheckpointError as error:
    assert "p is a partial sum over processes" in str(error), error
everywhere = [Replicate(), Replicate()]
own["p"] = DTensor.from_local(torch.zeros(2 + rank), mesh, everywhere, run_check=False)
try:
    read_state_dict(own)
except CheckpointError as error:
    assert "of.0 is missing in the state dict of process 1, 2, 3" in str(error), error
    assert str(error).count("is missing") == 4, error
    assert "p has other shapes in other processes: {0: (2,), 1: (3,)" in str(error), error
print("all equal", flush=True)
os._exit(0)  # threads of gloo may outlive the interpreter
"""


@pytest.mark.exhaustive
def test_four_processes_read_every_box(tmp_path):
    script = tmp_path / "read.py"
    script.write_text(READ)
    port = str(free_port())
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=4"]
    done = subprocess.run(
        [*command, "--master-port", port, str(script)],
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout.count("all equal") == 4, done.stderr


@pytest.fixture(scope="module")
def alone():
    """A group of one process."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield torch.distributed.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_one_process_reads_its_shards(alone):
    from torch.distributed.tensor import Shard, distribute_tensor

    whole = torch.randn(5, 4).bfloat16()
    tensor = distribute_tensor(torch.nn.Parameter(whole), alone, [Shard(0)])
    assert is_sharded(tensor)
    assert not is_sharded(whole)
    found = read_state_dict({"module.w": tensor, "b": whole})
    assert [(name, one.is_collective) for name, one in found.items()] == [("w", True), ("b", False)]
    read = found["w"].rows("part", 1, 3).read([(0, 2), (1, 4)])
    np.testing.assert_array_equal(read.astype(float), whole[1:3, 1:4].double())


def test_partial_sums_and_meta_shards_are_refused_together(alone):
    from torch.distributed.tensor import DTensor, Partial, Shard

    tensors = {
        "p": DTensor.from_local(torch.ones(2), alone, [Partial()]),
        "m": DTensor.from_local(torch.ones(2, device="meta"), alone, [Shard(0)]),
    }
    with pytest.raises(CheckpointError) as raised:
        gather_shards(tensors, "here")
    assert "p is a partial sum over processes: redistribute it first" in str(raised.value)
    assert "m is on the meta device" in str(raised.value)
