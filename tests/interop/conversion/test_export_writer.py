"""Files written tensor by tensor get their names only when they are complete."""

import numpy as np

from jaxllm.interop.conversion.export_writer import ExportWriter
from jaxllm.interop.families.huggingface.pre_norm.llama import LLAMA
from jaxllm.interop.formats import safetensors_file
from jaxllm.interop.formats.lazy_tensor import from_array
from jaxllm.interop.saving.export import Export

ARRAYS = {"a": np.arange(10.0), "b": np.ones((3, 4), np.float32)}


def writer() -> ExportWriter:
    tensors = {name: from_array(array) for name, array in ARRAYS.items()}
    file = safetensors_file.lay_out("model.safetensors", tensors)
    return ExportWriter(Export(LLAMA, tensors, (file,), {"config.json": b"{}"}))


def test_units_are_tensors_and_writing_resumes_after_an_interruption(tmp_path):
    folder, done = tmp_path / "out", []
    first = writer()
    assert first.units == {"a": 80, "b": 48}
    assert first.format_name == "llama"
    first.begin(folder)
    digest = first.write(folder, "b", 16, done.append)
    assert done == [16, 16, 16]
    assert [file.name for file in folder.iterdir()] == ["model.safetensors.partial"]

    second = writer()
    assert second.plan() == first.plan()
    second.begin(folder)
    assert second.written(folder, "b") == digest.sha256
    assert second.written(folder, "a") != digest.sha256
    digests = {"b": digest, "a": second.write(folder, "a", 1 << 20, done.append)}
    second.finish(folder, digests)
    assert {file.name for file in folder.iterdir()} == {"model.safetensors", "config.json"}
    found = safetensors_file.read_header(folder / "model.safetensors")
    assert all((found[name].read() == array).all() for name, array in ARRAYS.items())
