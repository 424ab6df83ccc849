"""Saving: the same bits from any mesh and any number of processes, in little memory."""

import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiers import examples
from tiny import random_model

from jaxllm.checkpoint_origin import KEPT
from jaxllm.interop import CheckpointError, convert, load_pretrained, save_pretrained
from jaxllm.interop.families import RuleTable
from jaxllm.interop.formats import lazy_tensor
from jaxllm.interop.formats.lazy_tensor import from_array
from jaxllm.interop.loading.model_arrays import ModelArrays, arrays_of_model
from jaxllm.interop.rules.rule import Rule
from jaxllm.interop.saving.export import export_tensors


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def tree(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Returns a Hugging Face folder of a tiny model."""
    folder = tmp_path_factory.mktemp("save") / "llama"
    save_pretrained(random_model(head_dim=8), folder)
    return folder


def test_fused_tensor_is_assembled_from_its_parts():
    sizes = {"L": 2, "N": 4, "K": 2, "H": 3, "D": 5}
    rng = np.random.default_rng(0)
    arrays = {
        f"layers.0:2.{name}.kernel": rng.standard_normal((2, 5, heads, 3))
        for name, heads in {"q": 4, "k": 2, "v": 2}.items()
    }
    table = RuleTable(
        tuple(
            Rule(f"h.{{L}}.qkv#{name} : ({axis} H) D", f"layers.{{L}}.{name}.kernel : D {axis} H")
            for name, axis in {"q": "N", "k": "K", "v": "K"}.items()
        ),
        sizes,
    )
    model = ModelArrays(
        random_model().config,
        None,
        {"layers": {"0:2": range(2)}},
        {name: from_array(array) for name, array in arrays.items()},
    )
    tensors = dict(export_tensors(model, table))
    assert tensors.keys() == {"h.0.qkv", "h.1.qkv"}
    for layer, tensor in enumerate(tensors.values()):
        parts = [array[layer].transpose(1, 2, 0).reshape(-1, 5) for array in arrays.values()]
        whole = np.concatenate(parts)
        assert tensor.shape == whole.shape
        for max_bytes in (8, 5 * 8 * 7, 10**6):
            assert b"".join(tensor.payload(max_bytes)) == whole.tobytes()


def test_only_the_written_layer_of_a_stack_is_read():
    model = arrays_of_model(random_model())
    asked = []
    arrays = {
        name: lazy_tensor.TensorSource(
            array.dtype,
            array.shape,
            lambda box, name=name, array=array: asked.append((name, box)) or array.read(box),
        )
        for name, array in model.arrays.items()
    }
    name, stack = "layers.0:3.attn.q_proj.kernel", {"layers": {"0:3": range(3)}}
    rule = Rule("h.{L}.q : (N H) D", "layers.{L}.attn.q_proj.kernel : D N H")
    table = RuleTable((rule,), {"L": 3, "N": 4, "H": 16, "D": 32})
    tensors = dict(export_tensors(ModelArrays(model.config, None, stack, arrays), table))
    (chunk,) = tensors["h.1.q"].payload(10**9)
    assert chunk.nbytes == arrays[name].nbytes / 3
    assert asked == [(name, ((1, 2), (0, 32), (0, 4), (0, 16)))]


def test_invalid_max_shard_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="'many' is not a size"):
        save_pretrained(random_model(), tmp_path / "out", max_shard="many")
    assert list(tmp_path.iterdir()) == []


def add_array(model):
    model.gain = nnx.data(jnp.arange(1.0, 4.0))


def add_parameter(model):
    model.layers["0:3"].adapter = nnx.Param(jnp.arange(6.0).reshape(3, 2))


def add_bias(model):
    model.lm_head.bias = nnx.Param(jnp.arange(96.0))


def remove_norm(model):
    model.final_norm.scale = nnx.data(None)


def widen_head(model):
    model.lm_head.kernel = nnx.Param(jnp.ones((32, 97)))


@pytest.mark.parametrize("form", ["hf", "meta", "native"])
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (add_array, "gain: (3,) in the model, none by the config"),
        (add_parameter, "layers.0:3.adapter: (3, 2) in the model, none by the config"),
        (add_bias, "lm_head.bias: (96,) in the model, none by the config"),
        (remove_norm, "final_norm.scale: missing in the model, (32,) by the config"),
        (widen_head, "lm_head.kernel: (32, 97) in the model, (32, 96) by the config"),
    ],
)
def test_parameter_beyond_the_config_is_refused_by_name(tmp_path, form, change, problem):
    """Such a checkpoint was written without the parameter, or could not be loaded again."""
    model = random_model(head_dim=8)
    change(model)
    with pytest.raises(CheckpointError) as error:
        save_pretrained(model, tmp_path / "out", format=form)
    assert error.value.problems[0] == problem
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["save", "convert"])
def test_a_native_checkpoint_keeps_the_files_of_its_origin(saved, tmp_path, how, caplog):
    source = shutil.copytree(saved, tmp_path / "source")
    for name in ("tokenizer.json", "additional_chat_templates/rag.jinja", "LICENSE"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(f"that is {name}")
    save_pretrained(load_pretrained(source), tmp_path / "before")
    if how == "save":
        save_pretrained(load_pretrained(source), tmp_path / "native", format="native")
    else:
        convert(source, tmp_path / "native", to="native")
    shutil.rmtree(source)
    (tmp_path / "native").rename(tmp_path / "moved")
    save_pretrained(load_pretrained(tmp_path / "moved"), tmp_path / "saved", format="hf")
    convert(tmp_path / "moved", tmp_path / "converted", to="hf")
    for folder in ("saved", "converted"):
        assert tree(tmp_path / folder) == tree(tmp_path / "before")
    assert not caplog.messages
    shutil.rmtree(tmp_path / "moved" / KEPT)
    convert(tmp_path / "moved", tmp_path / "bare", to="hf")
    assert f"{source}, which the model came from, does not exist" in caplog.text


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Limits the size of files, to act like a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_failure_leaves_nothing_behind(saved, tmp_path):
    """A companion file does not fit; all tensors have been written by then."""
    source = shutil.copytree(saved, tmp_path / "source")
    with (source / "tokenizer.json").open("wb") as stream:
        stream.truncate(64 << 20)
    model = load_pretrained(source)
    with files_up_to(32 << 20), pytest.raises(OSError, match="File too large"):
        save_pretrained(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [source]


MEMORY = """
import sys, threading, time
import jax, numpy as np
from jaxllm.config import DecoderConfig, NumericsConfig
from jaxllm.interop import save_pretrained
from jaxllm.params import initialize
from jaxllm.train import make_mesh

def anonymous():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

config = DecoderConfig(
    vocab_size=4096, embed_dim=2048, num_layers=4, num_heads=16, num_kv_heads=4, head_dim=128,
    mlp_dim=8192, numerics=NumericsConfig(param_dtype="bfloat16", dtype="bfloat16"),
)
model = initialize(config, make_mesh(fsdp=4, tensor=2), 0)
jax.block_until_ready(jax.tree.leaves(model))
peak, done = [before := anonymous()], []
def watch():
    while not done:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.002)
watcher = threading.Thread(target=watch)
watcher.start()
save_pretrained(model, sys.argv[1])
done.append(1)
watcher.join()
print(peak[0] - before)
"""


@pytest.mark.exhaustive
def test_saving_500_mb_takes_less_than_100_mb(tmp_path):
    """The stack of gate kernels alone has 134 MB; saving holds only a few chunks in addition."""
    script = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "out")],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert script.returncode == 0, script.stderr
    total = sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    assert total > 500e6
    assert float(script.stdout) < 100, script.stdout


PROCESS = """
import sys
import jax
rank, port, source, destination, form = int(sys.argv[1]), *sys.argv[2:]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank)
from jaxllm.interop import load_pretrained, save_pretrained
from jaxllm.train import make_mesh
model = load_pretrained(source, mesh=make_mesh(fsdp=4, tensor=2))
save_pretrained(model, destination, format=form, max_shard=50_000 if form == "hf" else "5GB")
"""


def save_together(source: Path, destination: Path, form: str) -> list[tuple[int, str]]:
    """Saves from two processes of four devices that share a model; returns statuses and output."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, *map(str, (rank, port, source, destination, form))],
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "4"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in started]
    return [(process.returncode, text) for process, text in zip(started, outputs, strict=True)]


@pytest.mark.exhaustive
@pytest.mark.parametrize("form", examples(["hf", "meta", "native"], "hf"))
def test_two_processes_write_the_same_as_one(form, saved, tmp_path):
    together = save_together(saved, tmp_path / "together", form)
    assert [status for status, _ in together] == [0, 0], together
    options = {"max_shard": 50_000} if form == "hf" else {}
    save_pretrained(load_pretrained(saved), tmp_path / "alone", format=form, **options)
    assert {file.name for file in tmp_path.iterdir()} == {"together", "alone"}
    if form == "native":
        for name in ("together", "alone"):
            save_pretrained(load_pretrained(tmp_path / name), tmp_path / f"{name}-hf", format="hf")
        assert content(tmp_path / "together-hf") == content(tmp_path / "alone-hf")
    else:
        assert content(tmp_path / "together") == content(tmp_path / "alone")


@pytest.mark.exhaustive
def test_failure_in_one_process_stops_both(saved, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").touch()
    together = save_together(saved, tmp_path / "taken", "hf")
    assert all(status != 0 for status, _ in together)
    assert "is not an empty folder" in together[0][1]
    assert [file.name for file in tmp_path.rglob("*")] == ["taken", "mine"]


def test_unusable_destination_is_left_untouched(saved, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="not an empty folder"):
        save_pretrained(load_pretrained(saved), tmp_path / "file")
    with pytest.raises(OSError, match="Not a directory"):
        save_pretrained(load_pretrained(saved), tmp_path / "file" / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
