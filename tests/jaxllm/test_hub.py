"""Addresses on the Hugging Face hub are downloaded once, in part, and only what is needed."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import chex
import jax
import pytest
from hub_server import SHA, TOKEN, serve
from huggingface_hub import constants
from safetensors.numpy import load_file
from tiny import random_model

from jaxllm.errors import CheckpointError, MissingPackageError, UserError
from jaxllm.hub import local_path, needed_files
from jaxllm.interop import (
    Rule,
    from_torch,
    load_into,
    load_pretrained,
    save_from,
    save_pretrained,
    suggest,
    verify,
)

EXTRA = ("pytorch_model.bin", "flax_model.msgpack", "tf_model.h5", "onnx/model.onnx", "README.md")
SMALL = ("tokenizer_config.json", "1_Pooling/config.json", "vocab.txt")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "repository"
    save_pretrained(random_model(), path, format="hf")
    for name in (*EXTRA, *SMALL):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(json.dumps({"name": name}))  # equal files are downloaded once
    return path


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    of_page = ("HuggingFaceTB/SmolLM2-135M", "Qwen/Qwen3-Embedding-0.6B")
    repositories = dict.fromkeys(("org/tiny", "org/secret", "org/gated", *of_page), folder)
    with serve(repositories, private={"org/secret"}, gated={"org/gated"}) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


def test_only_what_is_needed_is_downloaded_and_only_once(hub, folder):
    model = load_pretrained("hf://org/tiny")
    assert model.config == load_pretrained(folder).config
    assert sorted(hub.downloads()) == sorted(["config.json", "model.safetensors", *SMALL])
    place = local_path("hf://org/tiny@main")
    assert place.name == SHA
    assert local_path(Path("hf://org/tiny")) == place  # `Path` drops a slash
    assert len(hub.downloads()) == 2 + len(SMALL)
    assert verify("hf://org/tiny@v1").ok


def test_one_gguf_file_of_a_repository_is_named(hub, folder):
    for name in ("model.safetensors", "pytorch_model.bin"):
        (folder / name).unlink()
    for name in ("tiny.Q4_0.gguf", "all/tiny.Q8_0.gguf"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(name.encode())
    files = "its GGUF files: all/tiny.Q8_0.gguf, tiny.Q4_0.gguf"
    message = f"hf://org/tiny has GGUF files only: name one, as in hf://org/tiny/all/.*; {files}"
    with pytest.raises(CheckpointError, match=message):
        local_path("hf://org/tiny")
    with pytest.raises(CheckpointError, match=rf"has no tiny.Q4.gguf; did you .*\?; {files}"):
        local_path("hf://org/tiny/tiny.Q4.gguf")
    assert hub.downloads() == []
    for name in ("tiny.Q4_0.gguf", "all/tiny.Q8_0.gguf"):
        assert local_path(f"hf://org/tiny/{name}@main").read_bytes() == name.encode()
    assert local_path(Path("hf://org/tiny/tiny.Q4_0.gguf")).is_file()
    assert sorted(hub.downloads()) == ["all/tiny.Q8_0.gguf", "tiny.Q4_0.gguf"]


def test_an_interrupted_download_goes_on(hub, folder, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    size = (folder / "model.safetensors").stat().st_size
    hub.cut["model.safetensors"] = size // 2
    place = local_path("hf://org/tiny")
    assert (place / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    ranges = [one for _, path, one in hub.requests if path.endswith("model.safetensors") and one]
    (first,) = (int(one.removeprefix("bytes=").partition("-")[0]) for one in ranges)
    assert size // 2 - 1024 <= first <= size // 2


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("hf://org/nothing", r"hf://org/nothing does not exist on http.*, or is private: check"),
        ("hf://org/tiny@v9", r"hf://org/tiny@v9 does not exist: the model has no revision 'v9'"),
        ("hf://org/secret", r"or is private.*`hf auth login`, or set HF_TOKEN"),
        ("hf://org/gated", r"is gated: accept its terms at http.*/org/gated, then log in"),
    ],
)
def test_what_cannot_be_had_is_said_in_one_line(hub, address, problem):
    with pytest.raises(CheckpointError, match=problem) as error:
        load_pretrained(address)
    assert "\n" not in str(error.value)


def test_a_private_model_is_read_with_the_token_of_the_environment(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert (local_path("hf://org/secret") / "model.safetensors").is_file()


def test_without_a_connection_the_cache_serves(hub, monkeypatch, caplog):
    place = local_path("hf://org/tiny")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert local_path("hf://org/tiny") == place
    assert "taken from the cache" in caplog.text
    with pytest.raises(CheckpointError, match=r"is not in the cache, and http.*cannot be reached"):
        local_path("hf://org/other")


@pytest.mark.parametrize(
    "address", ["hf://", "hf://a/b/c", "hf://a b", "hf:/x@", "hf://org/x--y..z"]
)
def test_malformed_addresses_are_refused(hub, address):
    with pytest.raises(UserError, match=r"hf://ORG/NAME"):
        local_path(address)


def test_the_package_may_be_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'jaxllm\[hub\]'"):
        local_path("hf://org/tiny")
    assert local_path("a/b") == Path("a/b")


def test_functions_for_other_trees_and_state_dicts_take_addresses_too(hub, folder, tmp_path):
    address, arrays = "hf://org/tiny", load_file(folder / "model.safetensors")
    rules = [
        Rule(*2 * [f"{name} : " + " ".join(f"A{number}{dim}" for dim in range(array.ndim))])
        for number, (name, array) in enumerate(arrays.items())
    ]
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in arrays.items()}
    tree = load_into(shapes, address, rules)
    chex.assert_trees_all_equal(tree, arrays)
    save_from(tree, tmp_path / "again", rules, like=address)
    assert (tmp_path / "again" / "config.json").is_file()
    assert len(suggest(address, tree=shapes).rules) > 0
    assert from_torch(arrays, config=address).config == load_pretrained(folder).config


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (["model.safetensors", "consolidated.safetensors", "pytorch_model.bin"], 1),
        (["model.safetensors.index.json", "model-00001-of-00002.safetensors"], 2),
        (["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin", "x.safetensors"], 2),
        (["consolidated.00.pth", "consolidated.01.pth", "original.pth"], 2),
        (["only.safetensors", "model.ckpt"], 1),
    ],
)
def test_one_format_of_the_weights_is_chosen(names, weights):
    assert needed_files([*names, "config.json"]) == [*names[:weights], "config.json"]


@pytest.mark.exhaustive
def test_the_commands_of_the_page_run(hub, tmp_path):
    """HF_ENDPOINT and HF_HOME are read when the package is imported."""
    page = (Path(__file__).parents[2] / "docs" / "import_export.md").read_text()
    block = page.partition("## Checkpoints on the Hugging Face hub")[2].partition("```sh\n")[2]
    commands = block.partition("```")[0].splitlines()
    assert len(commands) == 2
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    environment.pop("HF_HUB_OFFLINE", None)
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", *shlex.split(command)],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert verify(tmp_path / "embedder").ok
