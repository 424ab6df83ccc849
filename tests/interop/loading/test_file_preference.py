"""Of several weights in one folder, those are read that transformers reads."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import random_model

from jaxllm.interop import CheckpointError, load_pretrained, save_pretrained
from jaxllm.interop.loading.checkpoint import open_checkpoint

SINGLE = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}
STATES = ("absent", "whole", "shards gone")
CASES = list(itertools.product((False, True), STATES, (False, True), STATES))


def write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    if path.suffix == ".bin":
        torch.save(tensors, path)
    else:
        save_file(tensors, path, metadata={"format": "pt"})


def add_shards(folder: Path, name: str, tensors: dict[str, torch.Tensor], state: str) -> None:
    """Adds an index file and its two shards, or the index file alone."""
    if state == "absent":
        return
    stem, suffix = name.split(".")
    places = {}
    for number, names in enumerate((list(tensors)[::2], list(tensors)[1::2]), 1):
        shard = f"{stem}-{number:05}-of-00002.{suffix}"
        places |= dict.fromkeys(names, shard)
        if state == "whole":
            write(folder / shard, {name: tensors[name] for name in names})
    index = {"metadata": {}, "weight_map": places}
    (folder / f"{name}.index.json").write_text(json.dumps(index))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("preference") / "llama"
    save_pretrained(random_model(num_layers=1, head_dim=8), folder)
    return folder


@pytest.fixture
def build(saved, tmp_path) -> Callable[..., Path]:
    """Returns a function that builds a folder; the weights of each file have another sign or size.

    Its argument is one of `CASES`: whether there is a single file and the state of the shards, for
    safetensors and for .bin.
    """

    def make(case: tuple[bool, str, bool, str]) -> Path:
        weights, factor = load_file(saved / SINGLE["safetensors"]), 1.0
        shutil.copy(saved / "config.json", tmp_path)
        for suffix, (has_single, state) in zip(SINGLE, (case[:2], case[2:]), strict=True):
            for is_single in (True, False):
                factor *= -1.5
                scaled = {name: tensor * factor for name, tensor in weights.items()}
                if not is_single:
                    add_shards(tmp_path, SINGLE[suffix], scaled, state)
                elif has_single:
                    write(tmp_path / SINGLE[suffix], scaled)
        return tmp_path

    return make


@pytest.mark.parametrize("case", CASES)
def test_the_files_that_transformers_prefers_are_read(build, case):
    folder = build(case)
    try:
        reference = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    except OSError:
        with pytest.raises(CheckpointError):
            open_checkpoint(folder)
        return
    for name, tensor in open_checkpoint(folder).tensors.items():
        assert np.array_equal(tensor.read(), reference[name].numpy()), name


@pytest.mark.parametrize("suffix", SINGLE)
def test_a_stale_index_is_named(build, suffix, caplog):
    has = {"safetensors": (True, "shards gone", False, "absent")}
    folder = build(has.get(suffix, (False, "absent", True, "shards gone")))
    load_pretrained(folder)
    name = SINGLE[suffix]
    assert caplog.messages == [
        f"{folder} has both {name} and {name}.index.json: only {name} is read, as transformers does"
    ]
