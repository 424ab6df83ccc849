"""Conversion gives the same bits as loading and saving, also when it was killed and resumed."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hf_cases import CASES, randomize, stored
from safetensors.torch import load_file, save_file
from tiers import examples
from tiny import random_model

from jaxllm.checkpoint_origin import KEPT
from jaxllm.config import DecoderConfig, with_fields
from jaxllm.errors import NarrowingError, UserError
from jaxllm.interop import CheckpointError, convert, load_pretrained, save_pretrained, verify
from jaxllm.interop.families import Layout
from jaxllm.interop.families.huggingface.pre_norm.llama import LLAMA
from jaxllm.interop.formats import file_writer, safetensors_file
from jaxllm.interop.formats.lazy_tensor import TensorSource
from jaxllm.interop.loading.checkpoint_dir import open_known_checkpoint
from jaxllm.params import named_parameters, with_arrays
from jaxllm.train import TrainConfig, train
from jaxllm.train.data.documents import DataConfig
from jaxllm.train.mesh import MeshConfig
from jaxllm.train.settings.logging import LoggingConfig


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def bits(folder: Path) -> dict[str, bytes]:
    """Returns the bits of the model in a folder."""
    model = load_pretrained(folder)
    return {
        name: np.asarray(v.get_value()).tobytes() for name, v in named_parameters(model).items()
    }


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    """Returns a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("convert") / "llama"
    save_pretrained(random_model(head_dim=8), folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def folders(llama, tmp_path_factory) -> dict[str, Path]:
    """Returns the same model in every format, written by loading and saving."""
    found = {"hf": llama}
    for form in ("meta", "tlama", "native"):
        found[form] = tmp_path_factory.mktemp(form) / form
        save_pretrained(load_pretrained(llama), found[form], format=form)
    return found


def test_a_native_checkpoint_with_a_name_that_is_not_utf8_is_refused(llama, tmp_path):
    with pytest.raises(UserError, match="is not UTF-8, as Orbax needs paths to be"):
        convert(llama, tmp_path / "\udcff", to="native")
    assert not [*tmp_path.iterdir()]


def test_float64_becomes_what_devices_have_in_a_native_checkpoint_alone(llama, tmp_path, caplog):
    folder = shutil.copytree(llama, tmp_path / "wide")
    tensors = load_file(folder / "model.safetensors")
    wide = {name: tensor.double() + 2.0**-40 for name, tensor in tensors.items()}
    save_file(wide, folder / "model.safetensors")
    convert(folder, tmp_path / "same")
    assert load_file(tmp_path / "same" / "model.safetensors")["lm_head.weight"].dtype.itemsize == 8
    assert "float64" not in caplog.text
    convert(folder, tmp_path / "native", to="native")
    assert "arrays are float64: written as float32" in caplog.text
    assert bits(tmp_path / "native") == bits(folder)
    wide["lm_head.weight"][0, 0] = 1e300
    save_file(wide, folder / "model.safetensors")
    with pytest.raises(NarrowingError, match=r"lm_head\.kernel: 1 of .*, up to 1e\+300"):
        convert(folder, tmp_path / "beyond", to="native")


@pytest.mark.cases(5)
@pytest.mark.parametrize("to", ["hf", "meta", "tlama", "native"])
@pytest.mark.parametrize("source", ["hf", "meta", "tlama", "native"])
def test_every_format_converts_to_every_other(source, to, folders, tmp_path):
    done = convert(folders[source], tmp_path / "out", to=to)
    save_pretrained(load_pretrained(folders[source]), tmp_path / "saved", format=to)
    if to == "native":
        assert bits(tmp_path / "out") == bits(tmp_path / "saved")
        assert load_pretrained(tmp_path / "out").config == load_pretrained(folders[source]).config
    else:
        assert content(tmp_path / "out") == content(tmp_path / "saved")
    assert done.num_bytes_kept == 0
    assert {folder.name for folder in tmp_path.iterdir()} == {"out", "saved"}
    kept = tmp_path / "out" / (KEPT if to == "native" else ".")
    assert (kept / "tokenizer.json").exists()


@pytest.mark.parametrize("to", ["hf", "native"])
def test_overflow_is_refused_and_counted_in_every_tensor(to, llama, tmp_path):
    source = shutil.copytree(llama, tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    weights["model.norm.weight"][3], weights["lm_head.weight"][5, :2] = 7e4, -1e6
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NarrowingError) as error:
        convert(source, tmp_path / "out", to=to, dtype="float16")
    assert str(error.value).splitlines() == [
        "overflow: 3 beyond 65504, the largest number of float16:",
        "  final_norm.scale: 1 of 32, up to 70000 in magnitude",
        "  lm_head.kernel: 2 of 3,072, up to 1e+06 in magnitude",
        "  choose a dtype with a wider range, such as bfloat16",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    convert(source, tmp_path / "out", to=to, dtype="bfloat16")


@pytest.mark.parametrize("to", ["hf", "native"])
def test_numbers_that_become_zero_are_counted_in_every_tensor(to, llama, tmp_path, caplog):
    source = shutil.copytree(llama, tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    weights["model.norm.weight"][3], weights["lm_head.weight"][5, :2] = 1e-9, -1e-8
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    convert(source, tmp_path / "out", to=to, dtype="float16")
    assert caplog.messages == [
        "underflow: 3 become zero in float16, up to 2.98e-08 in magnitude\n"
        "  final_norm.scale: 1 of 32\n  lm_head.kernel: 2 of 3,072"
    ]
    caplog.clear()
    convert(source, tmp_path / "wide", to=to, dtype="bfloat16")
    assert not caplog.messages


@pytest.mark.parametrize("shards", [1, 2])
def test_meta_is_written_with_any_number_of_shards(shards, folders, tmp_path):
    convert(folders["hf"], tmp_path / "out", to="meta", model_parallel=shards)
    model = load_pretrained(folders["hf"])
    save_pretrained(model, tmp_path / "saved", format="meta", model_parallel=shards)
    assert content(tmp_path / "out") == content(tmp_path / "saved")


@pytest.mark.cases(2)
@pytest.mark.parametrize("to", ["hf", "native"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_conversion_to_a_dtype_equals_loading_in_it(to, dtype, folders, tmp_path):
    convert(folders["hf"], tmp_path / "out", to=to, dtype=dtype)
    save_pretrained(load_pretrained(folders["hf"], dtype=dtype), tmp_path / "saved", format=to)
    assert bits(tmp_path / "out") == bits(tmp_path / "saved")
    assert load_pretrained(tmp_path / "out").config.numerics.param_dtype == dtype


@pytest.mark.parametrize(("to", "dtype"), [("hf", "float32"), ("native", "float16")])
def test_layers_stored_in_several_dtypes_are_converted_to_the_one_that_is_given(
    to, dtype, llama, tmp_path
):
    weights = load_file(llama / "model.safetensors")
    for name in weights:
        if ".layers.0." in name:
            weights[name] = weights[name].bfloat16()
        elif "k_proj" in name or "norm" in name:
            weights[name] = weights[name].half()
    for folder, stored_as in (("mixed", lambda x: x), ("wide", lambda x: x.float())):
        shutil.copytree(llama, tmp_path / folder)
        converted = {name: stored_as(x) for name, x in weights.items()}
        save_file(converted, tmp_path / folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"is stored partly as .*: choose one with dtype="):
        convert(tmp_path / "mixed", tmp_path / "out", to=to)
    for folder in ("mixed", "wide"):
        convert(tmp_path / folder, tmp_path / f"{folder}_out", to=to, dtype=dtype)
    assert bits(tmp_path / "mixed_out") == bits(tmp_path / "wide_out")


@pytest.mark.parametrize("max_ram", examples([64, 10_000, "256MiB"], 10_000))
def test_any_max_ram_gives_the_same_files(max_ram, folders, tmp_path):
    convert(folders["meta"], tmp_path / "out", max_ram=max_ram)
    assert content(tmp_path / "out").keys() == content(folders["hf"]).keys()
    name = "model.safetensors"
    assert content(tmp_path / "out")[name] == content(folders["hf"])[name]


def test_progress_is_reported(llama, tmp_path):
    reported = []
    done = convert(
        llama,
        tmp_path / "out",
        max_ram=4096,
        progress=lambda done, total: reported.append((done, total)),
    )
    assert {total for _, total in reported} == {done.num_bytes}
    assert [now for now, _ in reported] == sorted({now for now, _ in reported})
    assert reported[-1] == (done.num_bytes, done.num_bytes)


@pytest.fixture(scope="module", params=examples(["stacked", "one-by-one"], "stacked"))
def run(request, tmp_path_factory) -> Path:
    """Returns a run trained on a mesh, with stacked layers or not."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_text("".join(f"{i} squared is {i * i}. " for i in range(900)))
    is_stacked = request.param == "stacked"
    sizes = {"vocab_size": 256, "embed_dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
    config = TrainConfig(
        output=str(folder / "run"),
        steps=2,
        batch_size=8,
        seq_len=16,
        save_every=1,
        eval_every=2,
        data=DataConfig(text=(str(folder / "text.txt"),), held_out=0.3),
        model=DecoderConfig(**sizes, head_dim=8, mlp_dim=64, scan_layers=is_stacked),
        mesh=MeshConfig(fsdp=4, tensor=2),
        logging=LoggingConfig(tensorboard=False),
    )
    train(config)
    return folder / "run"


@pytest.mark.cases(0, exhaustive=1)
@pytest.mark.exhaustive
def test_every_step_of_a_run_is_converted(run, tmp_path):
    for step in (1, 2):
        convert(run, tmp_path / f"hf{step}", step=step)
        trained = load_pretrained(run / "checkpoints" / str(step))
        save_pretrained(trained, tmp_path / f"saved{step}", format="hf")
        assert content(tmp_path / f"hf{step}") == content(tmp_path / f"saved{step}")
    assert content(tmp_path / "hf1") != content(tmp_path / "hf2")
    convert(run, tmp_path / "newest")
    assert content(tmp_path / "newest") == content(tmp_path / "hf2")
    convert(run / "checkpoints" / "1", tmp_path / "alone")
    assert content(tmp_path / "alone") == content(tmp_path / "hf1")
    assert verify(run, step=1).ok


@pytest.mark.exhaustive
def test_missing_step_is_named(run, llama, tmp_path):
    for source, expected in (
        (run, "has no checkpoint of step 3; it has 1, 2"),
        (run / "checkpoints" / "1", "is one checkpoint, not a run with a step 3"),
        (llama, "is not a run, so it has no step 3"),
    ):
        with pytest.raises(CheckpointError, match=expected):
            convert(source, tmp_path / "out", step=3)
    assert list(tmp_path.iterdir()) == []


# Conversions that are killed and resumed.

KILLED = """
import collections, os, signal, sys
from jaxllm.interop import convert
source, destination, to, where = sys.argv[1:]
opened, renamed = collections.Counter(), []

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def progress(done, total):
    if where.isdigit() and done >= total * int(where) // 100:
        kill()

def is_reached(event, first, second):
    if event == "open":
        opened[first] += 1
        if where == "laid out":  # a file that was laid out is opened again to be filled
            return first.endswith((".safetensors.partial", ".pth.partial")) and opened[first] == 2
        return where == "a file complete" and first.endswith(".json.partial")
    if event == "os.rename":
        renamed.append(second)
        if where == "placeholders":
            return second.endswith("_CHECKPOINT_METADATA.partial")
        if where == "all but the name":
            return second == destination
        return where == "a file complete" and len(renamed) == 2
    return where == "all but tidied" and first == f"{destination}.partial"

def watch(event, given):
    if event in ("open", "os.rename", "shutil.rmtree"):
        first, second, *_ = map(str, given)
        if is_reached(event, first, second):
            kill()

sys.addaudithook(watch)
# One worker, so that the progress at the kill is what `where` asks for.
convert(source, destination, to=to, max_ram="16KiB", progress=progress, workers=1)
"""

FILES_KILLED = ["laid out", "1", "50", "99", "100"]
FILES_KILLED += ["a file complete", "all but the name", "all but tidied"]
NATIVE_KILLED = ["placeholders", "1", "50", "100", "all but the name", "all but tidied"]
POINTS = [(to, where) for to in ("hf", "meta") for where in FILES_KILLED]
POINTS += [("native", where) for where in NATIVE_KILLED]


def kill_at(where: str, source: Path, destination: Path, to: str) -> None:
    arguments = [str(source), str(destination), to, where]
    command = [sys.executable, "-c", KILLED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def unit_bytes(folder: Path, to: str) -> dict[str, int]:
    """Returns the bytes of each unit of a conversion: tensors, or whole (small) arrays."""
    if to != "native":
        tensors = open_known_checkpoint(folder).tensors
        return {name: tensor.nbytes for name, tensor in tensors.items()}
    arrays = {n: v.get_value() for n, v in named_parameters(load_pretrained(folder)).items()}
    return {
        f"{name} {[[0, size] for size in array.shape]}": array.nbytes
        for name, array in arrays.items()
    }


@pytest.mark.cases(1, exhaustive=3)
@pytest.mark.parametrize(("to", "where"), examples(POINTS, *POINTS[::12]))
def test_killed_conversion_resumes(to, where, folders, tmp_path):
    source = folders["meta" if to == "hf" else "hf"]
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    kill_at(where, source, out, to)
    assert partial.is_dir()
    if where != "all but tidied":
        assert not out.exists()
    if where.isdigit():
        with pytest.raises(CheckpointError):
            load_pretrained(partial / "checkpoint")
    lines = (partial / "journal.jsonl").read_text().splitlines()[1:]
    noted = {json.loads(line)["tensor"] for line in lines}
    done = convert(source, out, to=to, max_ram="1MiB")
    units = unit_bytes(out, to)
    assert len(units) == done.num_units
    assert done.num_bytes_kept == sum(units[unit] for unit in noted)  # none is written again
    assert bool(done.num_bytes_kept) == bool(noted)
    if where in ("50", "99", "100", "a file complete", "all but the name", "all but tidied"):
        assert noted
    assert [folder.name for folder in tmp_path.iterdir()] == ["out"]
    convert(source, tmp_path / "whole", to=to)
    if to == "native":
        assert bits(out) == bits(tmp_path / "whole")
    else:
        assert content(out) == content(tmp_path / "whole")


def test_chunks_of_zeros_are_stored(tmp_path):
    """Orbax would report a chunk as lost if it were left out for holding only the fill value."""
    model = random_model(head_dim=8)
    arrays = {name: v.get_value() for name, v in named_parameters(model).items()}
    arrays["final_norm.scale"] = np.zeros_like(arrays["final_norm.scale"])
    save_pretrained(with_arrays(model, arrays), tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "native", to="native")
    assert bits(tmp_path / "native") == bits(tmp_path / "hf")


def kill_halfway(source: Path, destination: Path) -> Path:
    kill_at("50", source, destination, "hf")
    return destination.with_name(f"{destination.name}.partial")


@pytest.mark.exhaustive
def test_damaged_tensors_are_rewritten_on_resume(folders, tmp_path):
    partial = kill_halfway(folders["meta"], tmp_path / "out")
    (file,) = (partial / "checkpoint").glob("*.safetensors.partial")
    data = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start + 5] ^= 4
    file.write_bytes(data)
    journal = (partial / "journal.jsonl").read_text()
    (partial / "journal.jsonl").write_text(journal + '{"tensor": "cut sho')
    done = convert(folders["meta"], tmp_path / "out")
    assert 0 < done.num_bytes_kept < done.num_bytes / 2
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        folders["hf"] / "model.safetensors"
    ).read_bytes()


@pytest.mark.exhaustive
def test_other_arguments_do_not_resume(folders, tmp_path):
    partial = kill_halfway(folders["meta"], tmp_path / "out")
    before = content(partial)
    for changes, expected in (
        ({"to": "tlama"}, "to was 'hf', now it is 'tlama'"),
        ({"dtype": "bfloat16"}, "dtype was None, now it is 'bfloat16'"),
        ({"max_shard": "10KB"}, "the rest of the plan was"),
    ):
        with pytest.raises(CheckpointError) as error:
            convert(folders["meta"], tmp_path / "out", **changes)
        assert expected in str(error.value)
        assert f"{partial} holds an unfinished conversion" in str(error.value)
        assert "delete the folder to start over" in str(error.value)
        assert content(partial) == before


def test_changed_source_does_not_resume(folders, tmp_path):
    source = Path(shutil.copytree(folders["meta"], tmp_path / "source"))
    partial = kill_halfway(source, tmp_path / "out")
    file = source / "consolidated.00.pth"
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    with pytest.raises(CheckpointError) as error:
        convert(source, tmp_path / "out")
    assert "consolidated.00.pth was" in str(error.value)
    assert "params.json" not in str(error.value)
    shutil.rmtree(partial)
    assert convert(source, tmp_path / "out").num_bytes_kept == 0


def test_two_processes_cannot_write_one_destination(folders, tmp_path):
    partial = kill_halfway(folders["meta"], tmp_path / "out")
    with (partial / "journal.jsonl").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(CheckpointError, match="is being written by another process"):
            convert(folders["meta"], tmp_path / "out")


@pytest.mark.cases(1)
@pytest.mark.parametrize("to", ["hf", "meta", "native"])
def test_the_same_command_succeeds_after_a_kill_at_its_very_end(to, folders, tmp_path):
    """When the journal is gone, perhaps with its folder. Nothing is written; changes are seen."""
    source, out = folders["hf" if to == "meta" else "meta"], tmp_path / "out"
    convert(source, out, to=to)
    written = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    for is_left in (False, True):
        if is_left:
            (tmp_path / "out.partial").mkdir()
        again = convert(source, out, to=to)
        assert again.num_bytes_kept == again.num_bytes > 0
        assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == written
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(CheckpointError, match="not an empty folder"):
        convert(source, out, to=to, dtype="float16")
    files = [file for file in out.rglob("*") if file.suffix in (".safetensors", ".pth")]
    if to == "native":
        files = [out / "checkpoints" / "0" / "_CHECKPOINT_METADATA"]
    data = bytearray(files[0].read_bytes())
    data[len(data) // 2] ^= 4
    files[0].write_bytes(data)
    with pytest.raises(CheckpointError, match="not an empty folder"):
        convert(source, out, to=to)


def test_existing_files_are_left_untouched(llama, tmp_path):
    for name in ("out", "out.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").touch()
        with pytest.raises(CheckpointError, match=r"not an empty folder|is not an unfinished conv"):
            convert(llama, tmp_path / "out")
        assert [file.name for file in tmp_path.rglob("*")] == [name, "mine"]
        shutil.rmtree(tmp_path / name)
    (tmp_path / "out").mkdir()
    convert(llama, tmp_path / "out")
    assert content(tmp_path / "out") == content(llama)


def test_invalid_conversion_writes_nothing(folders, llama, tmp_path):
    for problem, options in (
        ("3 model-parallel shards", {"to": "meta", "model_parallel": 3}),
        ("'gguf' is not one of", {"to": "gguf"}),
        ("dtype='int8' is not one of", {"dtype": "int8"}),
        ("'much' is not a size", {"max_ram": "much"}),
    ):
        with pytest.raises(ValueError, match=problem):
            convert(llama, tmp_path / "out", **options)
    source = Path(shutil.copytree(folders["tlama"], tmp_path / "source"))
    (source / "state_dict.pth").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"state_dict\.pth"):
        convert(source, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


MEMORY = """
import sys, threading, time
from jaxllm.interop import convert

def anonymous():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

source, destination, small, to, max_ram = sys.argv[1:]
convert(small, destination + ".small", to=to)  # imports everything before memory is measured
peak, done = [before := anonymous()], []
def watch():
    while not done:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.002)
watcher = threading.Thread(target=watch)
watcher.start()
convert(source, destination, to=to, max_ram=max_ram)
done.append(1)
watcher.join()
print(peak[0] - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """Returns a Llama of 570 MB whose file is nearly all holes."""
    changes = {
        **{"vocab_size": 4096, "embed_dim": 2048, "num_heads": 16, "num_kv_heads": 4},
        **{"head_dim": 128, "mlp_dim": 8192, "num_layers": 4},
        **{"numerics.dtype": "bfloat16", "numerics.param_dtype": "bfloat16"},
    }
    config = with_fields(random_model().config, changes)
    folder = tmp_path_factory.mktemp("large") / "llama"
    folder.mkdir()
    rules = LLAMA.table(config, Layout()).bound({"layers": {"0:4": range(4)}})
    stored = dict(tensor for rule in rules for tensor in rule.stored())
    dtype = np.dtype(ml_dtypes.bfloat16)
    tensors = {
        name: TensorSource(dtype, shape, lambda box: np.empty(0)) for name, shape in stored.items()
    }
    file = safetensors_file.lay_out("model.safetensors", tensors)
    file_writer.create(folder, file)
    file_writer.finish(folder, file, {})
    (folder / "config.json").write_text(json.dumps(LLAMA.write_config(config, {})))
    return folder


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("to", "budget"), examples([("hf", 64), ("meta", 64), ("native", 128)], ("hf", 64))
)
def test_memory_stays_within_the_budget(to, budget, large, llama, tmp_path):
    arguments = [str(large), str(tmp_path / "out"), str(llama), to, f"{budget}MiB"]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (large / "model.safetensors").stat().st_size > 500e6
    assert float(done.stdout) <= budget, done.stdout


@pytest.mark.parametrize(
    "case", examples(["phi3", "gpt2", "gpt_neox", "mixtral", "llama4_text"], "phi3")
)
def test_fused_tensors_and_experts_round_trip(case, tmp_path):
    """Covers parts of fused tensors, separate experts, and stacks of two kinds of layers."""
    randomize(CASES[case].build()).save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours", max_ram=10_000)
    convert(tmp_path / "ours", tmp_path / "native", to="native")
    convert(tmp_path / "native", tmp_path / "back")
    theirs = stored(tmp_path / "theirs")
    assert stored(tmp_path / "ours") == stored(tmp_path / "back") == theirs
    assert {tensor.name for tensor in verify(tmp_path / "theirs").tensors} == theirs.keys()
    assert verify(tmp_path / "theirs").ok
    assert verify(tmp_path / "native").ok
