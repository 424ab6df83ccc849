"""Loading: PyTorch formats, strictness, arguments, memory, and two processes."""

import hashlib
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from jax.sharding import AxisType, Mesh
from safetensors.torch import load_file, save_file
from tiers import examples
from tiny import random_model
from transformers import AutoModelForCausalLM

from benchmarks.large_llama import save_large_llama
from jaxllm.config import DecoderConfig
from jaxllm.interop import CheckpointError, load_pretrained, plan, save_pretrained
from jaxllm.params import named_parameters

CONFIG = "config.json"
SAFETENSORS = "model.safetensors"
BIN = "pytorch_model.bin"
BIN_INDEX = "pytorch_model.bin.index.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Callable[[str], Path]:
    """Returns the folder of a tiny random Llama: "untied", "tied" or in "bfloat16"."""
    folders: dict[str, Path] = {}
    cases = {
        "untied": {},
        "tied": {"head.tied": True},
        "bfloat16": {"numerics.param_dtype": "bfloat16", "numerics.dtype": "bfloat16"},
    }

    def save(case: str) -> Path:
        if case not in folders:
            folders[case] = tmp_path_factory.mktemp(case) / "llama"
            save_pretrained(random_model(head_dim=8, **cases[case]), folders[case])
        return folders[case]

    return save


@pytest.fixture
def llama(saved, tmp_path) -> Path:
    """Returns a copy of the untied checkpoint, to be modified."""
    return Path(shutil.copytree(saved("untied"), tmp_path / "llama"))


def bits(model) -> dict[str, bytes]:
    return {
        name: np.asarray(v.get_value()).tobytes() for name, v in named_parameters(model).items()
    }


def mesh() -> Mesh:
    return jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def problems(folder: Path, **options: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(folder, **options)
    return str(caught.value)


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / SAFETENSORS)
    change(tensors)
    save_file(tensors, folder / SAFETENSORS, metadata={"format": "pt"})


def as_bins(source: Path, folder: Path, count: int, rename: Callable[[str], str] = str) -> Path:
    """Saves the tensors of `source` in `count` `.bin` files, as transformers 4 did."""
    folder.mkdir()
    shutil.copy(source / CONFIG, folder)
    tensors = {rename(name): t for name, t in load_file(source / SAFETENSORS).items()}
    if count == 1:
        torch.save(tensors, folder / BIN)
        return folder
    places = {name: number % count + 1 for number, name in enumerate(tensors)}
    files = {number: f"pytorch_model-{number:05}-of-{count:05}.bin" for number in places.values()}
    for number, file in files.items():
        torch.save({n: t for n, t in tensors.items() if places[n] == number}, folder / file)
    index = {"weight_map": {name: files[number] for name, number in places.items()}}
    (folder / BIN_INDEX).write_text(json.dumps(index))
    return folder


# Formats.


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("on_mesh", [False, True])
def test_bin_files_load_like_safetensors(saved, tmp_path, count, on_mesh):
    folder = as_bins(saved("untied"), tmp_path / "bins", count)
    options = {"mesh": mesh()} if on_mesh else {}
    assert bits(load_pretrained(folder, **options)) == bits(load_pretrained(saved("untied")))


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: "module." + name,
        lambda name: "_orig_mod." + name,
        lambda name: "module._orig_mod." + name,
        lambda name: "_orig_mod.module." + name,
        lambda name: name.replace("self_attn.", "self_attn._orig_mod."),
    ],
)
def test_wrapper_prefixes_are_removed_from_names(saved, tmp_path, rename):
    folder = as_bins(saved("untied"), tmp_path / "bins", 2, rename)
    assert bits(load_pretrained(folder)) == bits(load_pretrained(saved("untied")))


def test_names_that_collide_without_prefixes_are_rejected(saved, tmp_path):
    folder = as_bins(saved("untied"), tmp_path / "bins", 1)
    tensors = torch.load(folder / BIN)
    torch.save(tensors | {"module.lm_head.weight": torch.ones(1)}, folder / BIN)
    message = problems(folder)
    assert "lm_head.weight and module.lm_head.weight are both lm_head.weight" in message


def test_transposed_and_shared_storages_of_a_bin_are_read(saved, tmp_path):
    """Saved views keep their strides and share one storage."""
    folder = as_bins(saved("tied"), tmp_path / "bins", 1)
    tensors = torch.load(folder / BIN)
    tensors = {n: t.T.contiguous().T if t.ndim == 2 else t for n, t in tensors.items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    torch.save(tensors, folder / BIN)
    assert bits(load_pretrained(folder, max_ram=5000)) == bits(load_pretrained(saved("tied")))


def test_safetensors_are_preferred(saved, llama):
    (llama / BIN).write_bytes(b"never looked at")
    assert bits(load_pretrained(llama)) == bits(load_pretrained(saved("untied")))


def test_bin_from_before_pytorch_1_6_is_read(saved, tmp_path):
    folder = as_bins(saved("untied"), tmp_path / "bins", 1)
    tensors = torch.load(folder / BIN)
    torch.save(tensors, folder / BIN, _use_new_zipfile_serialization=False)
    assert bits(load_pretrained(folder, max_ram=5000)) == bits(load_pretrained(saved("untied")))


def test_float64_is_loaded_as_float32_and_said_so(saved, tmp_path, caplog):
    folder = as_bins(saved("untied"), tmp_path / "bins", 1)
    tensors = torch.load(folder / BIN)
    wide = {name: tensor.double() + 2.0**-40 for name, tensor in tensors.items()}
    torch.save(wide, folder / BIN)
    model = load_pretrained(folder)
    assert model.config.numerics.param_dtype == "float32"
    assert "arrays are float64, which devices do not have: loaded as float32" in caplog.text
    torch.save({name: tensor.float() for name, tensor in wide.items()}, folder / BIN)
    assert bits(model) == bits(load_pretrained(folder))
    assert bits(load_pretrained(folder, dtype="bfloat16")) != bits(model)
    torch.save(wide | {"lm_head.weight": wide["lm_head.weight"] * 1e300}, folder / BIN)
    load_pretrained(folder)
    assert "the largest number of float32; clamped to it" in caplog.text


def test_folder_without_tensors_lists_the_expected_files(llama):
    (llama / SAFETENSORS).rename(llama / "weights.txt")
    message = problems(llama)
    for name in (SAFETENSORS, BIN, BIN_INDEX, "weights.txt"):
        assert name in message


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("../out.safetensors", "'../out.safetensors' is not a file in this folder"),
        ("{tmp}/out.safetensors", "out.safetensors' is not a file in this folder"),
        ("sub/out.safetensors", "'sub/out.safetensors' is not a file in this folder"),
        ("link/out.safetensors", "'link/out.safetensors' is not a file in this folder"),
        ("dangling", "'dangling' is not a file in this folder"),
        ("", "'' is not a file in this folder"),
        ("..", "'..' is not a file in this folder"),
    ],
)
def test_index_file_cannot_point_outside_its_folder(llama, tmp_path, place, message):
    shutil.copy(llama / SAFETENSORS, tmp_path / "out.safetensors")
    (llama / "sub").mkdir()
    shutil.copy(llama / SAFETENSORS, llama / "sub" / "out.safetensors")
    (llama / "link").symlink_to(tmp_path)
    (llama / "dangling").symlink_to(tmp_path / "nowhere")
    names = load_file(llama / SAFETENSORS)
    (llama / SAFETENSORS).unlink()
    index = {"weight_map": dict.fromkeys(names, place.format(tmp=tmp_path))}
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    assert message in problems(llama)


def test_file_may_be_a_link_as_in_the_hub_cache(saved, llama, tmp_path):
    blob = tmp_path / "blobs" / "0123abcd"
    blob.parent.mkdir()
    (llama / SAFETENSORS).rename(blob)
    (llama / SAFETENSORS).symlink_to(Path("..") / "blobs" / "0123abcd")
    assert bits(load_pretrained(llama)) == bits(load_pretrained(saved("untied")))


# What `strict=False` tolerates, and what it does not.


def test_unknown_tensors_are_ignored_with_a_warning(saved, llama, caplog):
    edit_tensors(llama, lambda tensors: tensors.update({"extra.weight": torch.ones(3)}))
    assert "extra.weight is unexpected" in problems(llama)
    with caplog.at_level(logging.WARNING):
        model = load_pretrained(llama, strict=False)
    assert bits(model) == bits(load_pretrained(saved("untied")))
    assert "extra.weight is unexpected" in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: edit_tensors(folder, lambda tensors: tensors.pop("model.norm.weight")),
        lambda folder: edit_tensors(
            folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(5)})
        ),
        lambda folder: edit_config(folder, hidden_act="mish"),
        lambda folder: edit_config(folder, hidden_size="wide"),
    ],
)
def test_missing_or_wrong_tensors_are_rejected_without_strict_too(llama, damage):
    edit_tensors(llama, lambda tensors: tensors.update({"extra.weight": torch.ones(3)}))
    damage(llama)
    assert problems(llama, strict=False)


def add_head(folder: Path, change: float) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["lm_head.weight"][-1, -1] += change

    edit_tensors(folder, add)


@pytest.mark.parametrize("max_ram", ["256MiB", 1000])
def test_a_tied_head_that_differs_from_the_embedding_is_loaded_as_untied(
    saved, tmp_path, max_ram, caplog
):
    folder = Path(shutil.copytree(saved("tied"), tmp_path / "llama"))
    add_head(folder, 0)
    assert bits(load_pretrained(folder, max_ram=max_ram)) == bits(load_pretrained(saved("tied")))
    add_head(folder, 1)
    assert not caplog.messages
    model = load_pretrained(folder, max_ram=max_ram)
    assert "the head differs from the embedding: loaded as untied" in caplog.messages[0]
    assert not model.config.head.tied
    tokens = np.arange(40)[None]
    reference = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        expected = reference(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(model(tokens).logits, expected, atol=1e-5)
    save_pretrained(model, tmp_path / "again")
    assert not json.loads((tmp_path / "again" / CONFIG).read_text())["tie_word_embeddings"]
    assert bits(load_pretrained(tmp_path / "again")) == bits(model)


def test_leftovers_are_left_out_and_other_heads_named(saved, llama, caplog):
    leftovers = ("model.rotary_emb.inv_freq", "model.layers.1.self_attn.rotary_emb.inv_freq")
    heads = ("score.weight", "v_head.summary.bias")
    extra = {name: torch.ones(3) for name in (*leftovers, *heads)}
    edit_tensors(llama, lambda tensors: tensors.update(extra))
    assert bits(load_pretrained(llama)) == bits(load_pretrained(saved("untied")))
    assert caplog.messages == [
        f"{llama}: not part of the model: {', '.join(heads)}; the way back takes them from there"
    ]


def test_a_copy_stands_for_an_embedding_that_is_not_stored(saved, tmp_path):
    folder = Path(shutil.copytree(saved("tied"), tmp_path / "llama"))

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    edit_tensors(folder, rename)
    assert bits(load_pretrained(folder)) == bits(load_pretrained(saved("tied")))


def test_missing_untied_head_is_an_error(llama):
    edit_tensors(llama, lambda tensors: tensors.pop("lm_head.weight"))
    for strict in (True, False):
        assert "lm_head.weight is missing" in problems(llama, strict=strict)


def test_non_finite_numbers_are_kept_bit_for_bit(saved, tmp_path):
    """A diverged run must remain loadable to be examined; `verify` counts such numbers."""
    folder = Path(shutil.copytree(saved("bfloat16"), tmp_path / "llama"))
    payloads = torch.tensor([0x7F81, 0x7FC0, 0xFFC1 - 2**16, 0x7F80], dtype=torch.int16)
    name = "model.layers.1.mlp.up_proj.weight"

    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(torch.int16)[:4, 0] = payloads

    edit_tensors(folder, poison)
    array = np.asarray(named_parameters(load_pretrained(folder))["layers.0:3.mlp.up_proj.kernel"])
    assert array[1, 0, :4].tobytes() == payloads.numpy().tobytes()


# Arguments.


@pytest.mark.parametrize("wrong", ["", "much", "12 parsecs", "-1", 0, -5, True, None, 1.5])
def test_invalid_max_ram_is_rejected(llama, wrong):
    with pytest.raises(ValueError, match="is not a size"):
        load_pretrained(llama, max_ram=wrong)


@pytest.mark.cases(2)
@pytest.mark.parametrize("max_ram", [1, 4000, "64KiB", "1MB", "2GB", "256MiB"])
def test_any_max_ram_gives_the_same_bits(saved, llama, max_ram):
    assert bits(load_pretrained(llama, max_ram=max_ram, mesh=mesh())) == bits(
        load_pretrained(saved("untied"))
    )


@pytest.mark.cases(4)
@pytest.mark.parametrize("max_ram", [4000, "256MiB"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("case", ["untied", "bfloat16"])
def test_cast_rounds_each_number_once(saved, case, dtype, max_ram):
    stored = named_parameters(load_pretrained(saved(case)))
    model = load_pretrained(saved(case), mesh=mesh(), dtype=dtype, max_ram=max_ram)
    assert model.config.numerics.param_dtype == model.config.numerics.dtype == dtype
    for name, variable in named_parameters(model).items():
        expected = np.asarray(stored[name].get_value()).astype(ml_dtypes.finfo(dtype).dtype)
        assert np.asarray(variable.get_value()).tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("form", ["hf", "native"])
def test_numbers_beyond_the_dtype_are_clamped_and_counted(llama, tmp_path, caplog, form):
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"][3] = -7e4
        tensors["lm_head.weight"][5, 1], tensors["lm_head.weight"][0, 0] = 1e6, float("inf")

    edit_tensors(llama, widen)
    folder = llama
    if form == "native":
        save_pretrained(load_pretrained(llama), tmp_path / "native", format="native")
        folder = tmp_path / "native"
    arrays = named_parameters(load_pretrained(folder, dtype="float16", mesh=mesh()))
    assert arrays["final_norm.scale"].get_value()[3] == -65504
    assert arrays["lm_head.kernel"].get_value()[1, 5] == 65504
    assert arrays["lm_head.kernel"].get_value()[0, 0] == np.inf
    assert "overflow: 2 beyond 65504, the largest number of float16; clamped to it" in caplog.text
    caplog.clear()
    load_pretrained(folder, dtype="bfloat16")
    assert not caplog.text


@pytest.mark.parametrize("form", ["hf", "native"])
def test_numbers_that_become_zero_are_counted(llama, tmp_path, caplog, form):
    def shrink(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"][3], tensors["lm_head.weight"][5, :2] = 1e-9, -1e-8

    edit_tensors(llama, shrink)
    folder = llama
    if form == "native":
        save_pretrained(load_pretrained(llama), tmp_path / "native", format="native")
        folder = tmp_path / "native"
    load_pretrained(folder, dtype="float16", mesh=mesh())
    assert caplog.messages == [
        "underflow: 3 become zero in float16, up to 2.98e-08 in magnitude\n"
        "  final_norm.scale: 1 of 32\n  lm_head.kernel: 2 of 3,072"
    ]


def test_parts_of_several_dtypes_load_with_a_cast(saved, llama):
    name = "model.layers.1.self_attn.k_proj.weight"
    edit_tensors(llama, lambda tensors: tensors.update({name: tensors[name].half()}))
    assert "float16 and float32" in problems(llama)
    model = load_pretrained(llama, dtype="float32")
    ours = named_parameters(model)["layers.0:3.attn.k_proj.kernel"].get_value()
    whole = named_parameters(load_pretrained(saved("untied")))["layers.0:3.attn.k_proj.kernel"]
    expected = np.asarray(whole.get_value()).copy()
    expected[1] = expected[1].astype(np.float16)
    np.testing.assert_array_equal(ours, expected)


def test_plan_predicts_the_memory_of_loading(saved):
    planned = plan(saved("untied"), mesh=mesh(), dtype="bfloat16", max_ram="64MiB")
    model = load_pretrained(saved("untied"), mesh=mesh(), dtype="bfloat16")
    held = dict.fromkeys(map(str, jax.devices()), 0)
    for variable in named_parameters(model).values():
        for shard in variable.get_value().addressable_shards:
            held[str(shard.device)] += shard.data.nbytes
    assert planned.bytes_by_device == held
    assert planned.window_bytes <= 64 << 20
    assert set(planned.dtype_changes.values()) == {("float32", "bfloat16")}
    assert planned.dtype_changes.keys() == named_parameters(model).keys()
    assert not plan(saved("untied")).dtype_changes


# Memory: a separate process, whose anonymous pages are sampled while it loads.

MEMORY = """
import ctypes, gc, json, sys, threading, time
import jax
from jax.sharding import AxisType
from jaxllm.interop import load_pretrained
from jaxllm.interop.loading.streaming import device_buffers
from jaxllm.params import named_parameters

first, large, max_ram, kind, dtype = sys.argv[1:]
if kind == "accelerator":
    device_buffers.HostShardBuffers = device_buffers.DeviceShardBuffers
mesh = jax.make_mesh((1, 4, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
options = {} if dtype == "stored" else {"dtype": dtype}

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) << 10

load_pretrained(first, mesh=mesh, **options)  # imports modules, starts threads, compiles
gc.collect()
ctypes.CDLL("libc.so.6").malloc_trim(0)
before, peak, done = anonymous(), 0, threading.Event()

def watch():
    global peak
    while not done.is_set():
        peak = max(peak, anonymous())
        time.sleep(0.001)

watching = threading.Thread(target=watch)
watching.start()
model = load_pretrained(large, mesh=mesh, max_ram=max_ram, **options)
arrays = [v.get_value() for v in named_parameters(model).values()]
jax.block_until_ready(arrays)
done.set()
watching.join()
held = sum(shard.data.nbytes for array in arrays for shard in array.addressable_shards)
print(json.dumps({"above": max(peak, anonymous()) - before - held, "held": held}))
"""
# Memory that Python and the allocators keep for themselves.
INTERPRETER_BYTES = 16 << 20
SIZES = {"vocab_size": 8192, "embed_dim": 1024, "num_heads": 16, "num_kv_heads": 4, "head_dim": 64}
LARGE = {
    "stacked": DecoderConfig(**SIZES, mlp_dim=4096, num_layers=12),
    "one layer": DecoderConfig(**SIZES, mlp_dim=60000, num_layers=1),
}


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Callable[[str], Path]:
    """Returns a checkpoint of about 400 MB of bfloat16 in two files."""
    folders: dict[str, Path] = {}

    def save(case: str) -> Path:
        if case not in folders:
            folders[case] = tmp_path_factory.mktemp("large") / "llama"
            save_large_llama(LARGE[case], folders[case], 260_000_000)
            assert len(list(folders[case].glob("*.safetensors"))) == 2
        return folders[case]

    yield save
    for folder in folders.values():
        shutil.rmtree(folder)


@pytest.mark.cases(1, exhaustive=1)
@pytest.mark.parametrize(
    ("case", "kind", "dtype"),
    examples(
        [
            ("stacked", "cpu", "stored"),
            ("stacked", "cpu", "float32"),
            ("stacked", "accelerator", "stored"),
            ("one layer", "cpu", "stored"),
            ("one layer", "accelerator", "stored"),
        ],
        ("stacked", "cpu", "float32"),
    ),
)
def test_memory_beyond_the_arrays_is_bounded(saved, large, case, kind, dtype):
    # Neither XLA's compiled programs nor the blocks that malloc keeps when a CPU stands in for an
    # accelerator count as the loader's memory: the first load compiles the programs, and the
    # thresholds make malloc return its blocks at once.
    first = large(case) if kind == "accelerator" else saved("bfloat16")
    keep = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    arguments = [str(first), str(large(case)), "64MiB", kind, dtype]
    found = json.loads(run_script(MEMORY, arguments, **keep if kind == "accelerator" else {}))
    assert found["held"] > 5 * (64 << 20)
    assert found["above"] <= (64 << 20) + INTERPRETER_BYTES, found


def run_script(script: str, arguments: list[str], **environment: str) -> str:
    """Runs a script and returns the last line that it prints."""
    process = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()[-1]


# Two processes: each reads only what its devices hold.

PROCESS = """
import json, os, sys
import jax
rank, port, folder, fsdp, tensor = int(sys.argv[1]), *sys.argv[2:]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank)
import hashlib
import numpy as np
from jaxllm.interop import load_pretrained
from jaxllm.interop.loading.streaming import chunk_reader
from jaxllm.params import named_parameters
from jaxllm.train import make_mesh

preadv, read = os.preadv, []
def logged(handle, buffers, offset):
    count = preadv(handle, buffers, offset)
    read.append(count)
    return count
chunk_reader.os.preadv = logged
model = load_pretrained(folder, mesh=make_mesh(fsdp=int(fsdp), tensor=int(tensor)))
found = {}
for name, variable in named_parameters(model).items():
    for shard in variable.get_value().addressable_shards:
        digest = hashlib.sha256(np.ascontiguousarray(shard.data).tobytes()).hexdigest()
        found[f"{name} {shard.index}"] = digest
print("FOUND" + json.dumps({"read": sum(read), "shards": found}))
"""


# Rows so long that half a row is more than a page, in the dimensions that are sharded.
LONG_ROWS = {
    (8, 1): {"embed_dim": 8192, "head_dim": 16, "mlp_dim": 512},
    (1, 8): {"embed_dim": 256, "head_dim": 1024, "mlp_dim": 8192},
}


@pytest.mark.cases(0, exhaustive=1)
@pytest.mark.exhaustive
@pytest.mark.parametrize(("fsdp", "tensor"), examples(LONG_ROWS, next(iter(LONG_ROWS))))
def test_each_of_two_processes_reads_only_its_half(tmp_path, fsdp, tensor):
    config = DecoderConfig(
        vocab_size=512, num_layers=2, num_heads=8, num_kv_heads=8, **LONG_ROWS[fsdp, tensor]
    )
    folder = tmp_path / "llama"
    save_large_llama(config, folder, 10**9)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, *map(str, (rank, port, folder, fsdp, tensor))],
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "4"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(outputs)
    found = [json.loads(text.partition("FOUND")[2].splitlines()[0]) for text in outputs]
    alone = load_pretrained(folder)
    for half in found:
        for place, digest in half["shards"].items():
            name, _, index = place.partition(" ")
            whole = np.asarray(named_parameters(alone)[name].get_value())
            part = whole[eval(index)]
            assert hashlib.sha256(np.ascontiguousarray(part).tobytes()).hexdigest() == digest
    total = sum(v.get_value().nbytes for v in named_parameters(alone).values())
    for half in found:
        assert 0.5 * total <= half["read"] <= 0.51 * total  # both processes read the norms
