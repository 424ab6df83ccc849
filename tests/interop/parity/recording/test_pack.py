"""Packs: round trip, and errors for folders that are not packs."""

import json
from pathlib import Path

import chex
import numpy as np
import pytest

from jaxllm.interop import CheckpointError
from jaxllm.interop.parity.recording.pack import read_pack, write_pack


def test_a_pack_restores_the_data(tmp_path):
    data = {"a": [np.arange(3), {"b": np.ones((2, 0), np.float32)}], "c": None, "d": float("inf")}
    write_pack(data, tmp_path / "pack")
    found = read_pack(tmp_path / "pack")
    chex.assert_trees_all_equal(found["a"], data["a"])
    chex.assert_trees_all_equal_shapes_and_dtypes(found["a"], data["a"])
    assert (found["c"], found["d"]) == (None, float("inf"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pack"]


def test_folders_that_are_not_packs_are_rejected(tmp_path):
    with pytest.raises(CheckpointError, match=r"no pack\.json and no arrays\.safetensors"):
        read_pack(tmp_path)
    write_pack({"a": 1}, tmp_path / "pack")
    with pytest.raises(CheckpointError, match="exists; choose a new folder"):
        write_pack({"a": 1}, tmp_path / "pack")
    file = tmp_path / "pack" / "pack.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "version": 1}))
    with pytest.raises(CheckpointError, match="is a pack of version 1, not 3: record it again"):
        read_pack(tmp_path / "pack")
    file.write_text("{")
    with pytest.raises(CheckpointError, match="pack is damaged"):
        read_pack(tmp_path / "pack")


def test_an_unreadable_pack_is_not_called_damaged(tmp_path, monkeypatch):
    write_pack({"a": np.ones(3)}, tmp_path / "pack")
    original = Path.open

    for name in ("pack.json", "arrays.safetensors"):

        def refuse(path, *args, refused=name, **options):
            if path.name == refused:
                raise PermissionError(13, "Permission denied", str(path))
            return original(path, *args, **options)

        monkeypatch.setattr(Path, "open", refuse)
        with pytest.raises(PermissionError, match=name):
            read_pack(tmp_path / "pack")
