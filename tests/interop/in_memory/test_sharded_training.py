"""A run that FSDP shards over processes moves in memory like that of a single process."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch_training
from together import free_port

from jaxllm.interop import from_torch
from jaxllm.params import named_parameters

MOVE = """
import os, sys
import numpy as np
import torch
import torch.distributed as dist
import torch_training
import transformers
from pathlib import Path
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from jaxllm.interop import from_torch, to_torch
from jaxllm.params import named_parameters
from jaxllm.train import make_mesh

folder = Path(sys.argv[1])
dist.init_process_group("gloo")
model = transformers.AutoModelForCausalLM.from_pretrained(folder)
model.load_state_dict(torch.load(folder / "model.pt"))
for layer in model.model.layers:
    fully_shard(layer)
fully_shard(model)
optimizer = torch_training.adamw(model, named=False)
state = torch.load(folder / "optimizer.pt")
own = {id(p): name for name, p in model.named_parameters()}
for number, parameter in enumerate(p for g in optimizer.param_groups for p in g["params"]):
    assert isinstance(parameter, DTensor)
    entry = state["state"][number]
    moments = {
        what: torch.distributed.tensor.distribute_tensor(entry[what], parameter.device_mesh,
                                                         parameter.placements)
        for what in ("exp_avg", "exp_avg_sq")
    }
    optimizer.state[parameter] = {"step": entry["step"], **moments}

def save(name, arrays):
    np.savez(folder / f"{name} {dist.get_rank()}.npz", **arrays)

for name, form in [("own", optimizer), ("named", get_optimizer_state_dict(model, optimizer))]:
    ours, adamw = from_torch(model, optimizer=form, mesh=make_mesh(fsdp=2), max_ram="2KiB")
    arrays = {name: np.asarray(v.get_value()) for name, v in named_parameters(ours).items()}
    save(name, {**arrays, **{f"mu {n}": x for n, x in adamw.mu.items()},
                **{f"nu {n}": x for n, x in adamw.nu.items()}})

expected = {name: tensor.full_tensor() for name, tensor in model.state_dict().items()}
with torch.no_grad():
    for parameter in model.parameters():
        parameter.zero_()
assert to_torch(ours, into=model, max_ram="2KiB") is model
for name, tensor in model.state_dict().items():
    assert isinstance(tensor, DTensor)
    assert torch.equal(tensor.full_tensor(), expected[name]), name
print("filled", flush=True)
dist.barrier()
os._exit(0)  # threads of gloo may outlive the interpreter
"""


@pytest.mark.exhaustive
def test_a_run_of_fsdp_moves_with_its_optimizer(trained, tmp_path):
    module, optimizer, _ = trained
    module.save_pretrained(tmp_path)
    torch.save(module.state_dict(), tmp_path / "model.pt")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    model, state = from_torch(module, optimizer=optimizer)
    expected = {name: v.get_value() for name, v in named_parameters(model).items()}
    expected |= {f"mu {name}": array for name, array in state.mu.items()}
    expected |= {f"nu {name}": array for name, array in state.nu.items()}
    script = tmp_path / "move.py"
    script.write_text(MOVE)
    shutil.copy(torch_training.__file__, tmp_path)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, "--master-port", str(free_port()), str(script), str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "2"},
    )
    assert done.stdout.count("filled") == 2, done.stderr
    for form in ("own", "named"):
        for rank in range(2):
            found = np.load(tmp_path / f"{form} {rank}.npz")
            assert sorted(found) == sorted(expected)
            for name, array in expected.items():
                np.testing.assert_array_equal(found[name], np.asarray(array), name)
