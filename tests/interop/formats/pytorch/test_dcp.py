"""torch.distributed.checkpoint (DCP): reads what several processes wrote, writes what it reads."""

import os
import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hf_cases import randomize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiers import examples
from torch.distributed import checkpoint as distributed

from jaxllm.interop import CheckpointError, load_training_state
from jaxllm.interop.formats.file_writer import write_files
from jaxllm.interop.formats.lazy_tensor import from_array
from jaxllm.interop.formats.pytorch import dcp, dcp_writer

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

# Sizes that do not divide evenly between two processes.
SIZES = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 55, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 10}

SAVE = """
import os, sys
import torch, transformers
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions as Options
from torch.distributed.checkpoint.state_dict import get_model_state_dict as weights_of
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict as state_of
from torch.distributed.fsdp import fully_shard
from pathlib import Path

folder = Path(sys.argv[1])
dist.init_process_group("gloo")
model = transformers.AutoModelForCausalLM.from_pretrained(folder)
for layer in model.model.layers:
    fully_shard(layer)
fully_shard(model)
matrices = [p for p in model.parameters() if p.ndim >= 2]
others = [p for p in model.parameters() if p.ndim < 2]
groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
for step in range(2):
    optimizer.zero_grad()
    tokens = torch.arange(60).reshape(4, 15) + step
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
flat = Options(flatten_optimizer_state_dict=True)
titan = {**weights_of(model), "optimizer": state_of(model, optimizer, options=flat)}
titan["lr_scheduler"] = {"last_epoch": 2}
titan["train_state"] = {"step": torch.tensor(2)}
dcp.save(titan, checkpoint_id=folder / "titan")
nested = {"model": weights_of(model), "optim": state_of(model, optimizer)}
dcp.save(nested, checkpoint_id=folder / "nested")
full = Options(full_state_dict=True, cpu_offload=True)
weights, state = weights_of(model, options=full), state_of(model, optimizer, options=full)
if dist.get_rank() == 0:
    torch.save(weights, folder / "whole" / "pytorch_model.bin")
    torch.save(state, folder / "whole" / "optimizer.pt")
dist.barrier()
os._exit(0)  # threads of gloo may outlive the interpreter
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Returns what two processes saved: DCP in torchtitan's layout, DCP nested, and gathered."""
    folder = tmp_path_factory.mktemp("ranks")
    model = randomize(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **HEADS)))
    for form in (".", "whole", "titan", "nested"):
        model.config.save_pretrained(folder / form)
    model.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    common = {**os.environ, "MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    command = [sys.executable, "-c", SAVE, str(folder)]
    ranks = [subprocess.Popen(command, env={**common, "RANK": str(rank)}) for rank in range(2)]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    return folder


@pytest.mark.exhaustive
@pytest.mark.parametrize("form", examples(["titan", "nested"], "titan"))
def test_checkpoint_of_several_processes_equals_the_gathered_one(saved, form):
    assert {"__0_0.distcp", "__1_0.distcp"} <= {file.name for file in (saved / form).iterdir()}
    (ours, state), (model, whole) = (
        load_training_state(folder) for folder in (saved / form, saved / "whole")
    )
    assert state.step == whole.step == 2
    assert (state.b1, state.b2, state.eps, state.learning_rate) == (0.9, 0.95, 1e-8, 1e-3)
    assert state.weight_decay == whole.weight_decay
    assert set(state.weight_decay.values()) == {0.0, 0.1}
    for name in whole.mu:
        np.testing.assert_array_equal(state.mu[name], whole.mu[name])
        np.testing.assert_array_equal(state.nu[name], whole.nu[name])
        assert np.abs(whole.nu[name]).max() > 0
    kernel = "layers.0:2.mlp.up_proj.kernel"
    assert kernel in whole.mu
    for one in ("embed.embedding", kernel):
        a, b = (params(m)[one] for m in (ours, model))
        np.testing.assert_array_equal(a, b)


def params(model) -> dict[str, np.ndarray]:
    from jaxllm.params import named_parameters

    return {name: np.asarray(v.get_value()) for name, v in named_parameters(model).items()}


def test_torch_reads_written_checkpoints(tmp_path):
    """Covers tensors of any shape, values of any kind, and names that stand for nested state."""
    rng = np.random.default_rng(0)
    arrays = {
        "a.weight": rng.standard_normal((5, 7)).astype(np.float32),
        "b": rng.integers(-9, 9, (3,)),
        "state.step": np.array(4, np.float32),
    }
    values = {"groups.lr": 0.1, "groups.betas": (0.9, 0.95), "groups.foreach": None, "n": [1, "x"]}
    paths = {name: tuple(name.split(".")) for name in (*arrays, *values)}
    sources = {name: from_array(array) for name, array in arrays.items()}
    files = dcp_writer.lay_out(sources, values, paths)
    write_files(tmp_path, files, sources)
    state = {
        "a": {"weight": torch.zeros(5, 7)},
        "b": torch.zeros(3, dtype=torch.int64),
        "state": {"step": torch.zeros(())},
        "groups": {"lr": 0.0, "betas": (0.0, 0.0), "foreach": True},
        "n": [0],
    }
    distributed.load(state, checkpoint_id=tmp_path, no_dist=True)
    assert torch.equal(state["a"]["weight"], torch.from_numpy(arrays["a.weight"]))
    assert torch.equal(state["b"], torch.from_numpy(arrays["b"]))
    assert state["state"]["step"] == 4
    assert state["groups"] == {"lr": 0.1, "betas": (0.9, 0.95), "foreach": None}
    assert state["n"] == [1, "x"]
    contents = dcp.read(tmp_path)
    assert {name: value() for name, value in contents.values.items()} == values
    for name, array in arrays.items():
        box = [(size // 3, size) for size in array.shape]
        read = contents.tensors[name].read(box)
        np.testing.assert_array_equal(read, array[tuple(slice(*bounds) for bounds in box)])


@pytest.fixture
def copied(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved / "titan", tmp_path / "copy"))


@pytest.mark.cases(0)
@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "__1_0.distcp"])
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_file_is_named_or_still_reads(saved, name, data):
    """Damage in tensor data, or in bytes that are not needed, still reads."""
    file = saved / "titan" / name
    whole = file.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    some = data.draw(st.binary(min_size=1, max_size=9))
    cut = data.draw(st.booleans())
    file.write_bytes(whole[:at] if cut else whole[:at] + some + whole[at + len(some) :])
    message = error_of(saved / "titan")
    file.write_bytes(whole)
    assert message is None or str(saved / "titan") in message


def error_of(folder: Path) -> str | None:
    """Reads all tensors and values of a folder; returns the CheckpointError's message, if any."""
    try:
        for value in dcp.read(folder).values.values():
            value()
    except CheckpointError as error:
        return str(error)
    return None


def test_missing_file_is_named(copied):
    (copied / "__1_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"'__1_0\.distcp' is not a file in this folder"):
        load_training_state(copied)


class Intruder:
    """Runs a command as soon as it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


def test_code_in_the_metadata_file_is_not_run(copied, tmp_path):
    (copied / ".metadata").write_bytes(pickle.dumps(Intruder(tmp_path / "mark")))
    with pytest.raises(CheckpointError, match="system, which no state dict needs; nothing was"):
        load_training_state(copied)
    assert not (tmp_path / "mark").exists()


def edited(folder: Path, change) -> None:
    """Rewrites the metadata file after `change` has modified PyTorch's own object."""
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def drop_a_chunk(metadata) -> None:
    metadata.state_dict_metadata["model.norm.weight"].chunks.pop()


def repeat_a_chunk(metadata) -> None:
    chunks = metadata.state_dict_metadata["model.norm.weight"].chunks
    chunks[1] = chunks[0]


def point_outside_the_folder(metadata) -> None:
    next(iter(metadata.storage_data.values())).relative_path = "../titan/__0_0.distcp"


def compress(metadata) -> None:
    next(iter(metadata.storage_data.values())).transform_descriptors = ["zstd"]


def put_two_chunks_in_one_place(metadata) -> None:
    first, second, *_ = metadata.storage_data.values()
    second.relative_path, second.offset, second.length = (
        first.relative_path,
        first.offset + 1,
        first.length - 1,
    )


def change_the_shape(metadata) -> None:
    metadata.state_dict_metadata["model.norm.weight"].size = torch.Size([33])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_a_chunk, "model.norm.weight: its chunks have 16 of 32 elements"),
        (repeat_a_chunk, "model.norm.weight: its chunks overlap"),
        (point_outside_the_folder, "'../titan/__0_0.distcp' is not a file in this folder"),
        (put_two_chunks_in_one_place, "overlap in '__"),
        (compress, "is compressed, which is not supported"),
        (change_the_shape, "its chunks have 32 of 33 elements"),
    ],
)
def test_inconsistent_metadata_is_rejected(change, message, copied):
    edited(copied, change)
    with pytest.raises(CheckpointError) as error:
        load_training_state(copied)
    assert message in str(error.value)
    assert ".metadata" in str(error.value)


DOUBLED = ")" + "2\x86" * 40  # a tuple of a pair of a pair ...: 2 ** 40 values in 80 bytes
DEEP = ")" + "\x85" * 200_000


@pytest.mark.cases(2)
@pytest.mark.parametrize("value", [DOUBLED, DEEP], ids=["doubled", "deep"])
@pytest.mark.parametrize("place", ["fqn", "offset", "name", "size"])
def test_nested_tuples_in_the_metadata_are_rejected(tmp_path, place, value):
    """Hashing or showing them would take for ever, or more stack than the process has."""
    module = "torch.distributed.checkpoint.metadata"
    index = f"c{module}\nMetadataIndex\n)R}}(X\3\0\0\0fqnX\1\0\0\0wX\6\0\0\0offsetNub"
    place_of = "ctorch.distributed.checkpoint.filesystem\n_StorageInfo\n)R}b"
    tensor = f"c{module}\nTensorStorageMetadata\n)R}}(X\4\0\0\0sizeNX\6\0\0\0chunks]ub"
    name = "X\1\0\0\0w"
    if place == "fqn":
        index = index.replace("fqnX\1\0\0\0w", f"fqn{value}")
    elif place == "offset":
        index = index.replace("offsetN", f"offset{value}")
    elif place == "size":
        tensor = tensor.replace("sizeN", f"size{value}")
    else:
        name = value
    state = f"X\x13\0\0\0state_dict_metadata}}{name}{tensor}s"
    storage = f"X\x0c\0\0\0storage_data}}{index}{place_of}s"
    data = f"\x80\x02c{module}\nMetadata\n)R}}({state}{storage}ub."
    (tmp_path / ".metadata").write_bytes(data.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"\.metadata: "):
        dcp.read(tmp_path)
