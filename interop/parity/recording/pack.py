"""Packs: folders that store nested data as JSON and its arrays as safetensors."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.interop.loading.checkpoint_dir import check_is_folder
from jaxllm.storage.whole_file import write_whole
from jaxllm.untrusted.json_objects import parse_json
from jaxllm.untrusted.regular_files import read_bytes

DATA, ARRAYS = "pack.json", "arrays.safetensors"
ARRAY = "array"  # {"array": "12"} stands for an array
VERSION = 3


def write_pack(data: dict[str, Any], folder: Path) -> int:
    """Writes nested dicts and lists of strings, numbers and arrays into a new folder.

    Returns:
        The size of the folder in bytes.

    Raises:
        CheckpointError: the folder exists.
    """
    if folder.exists():
        raise CheckpointError(f"{folder} exists; choose a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    plain = _without_arrays({"version": VERSION, **data}, arrays)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as unfinished:
        whole = Path(unfinished) / "pack"
        whole.mkdir()
        write_whole(whole / DATA, json.dumps(plain) + "\n")
        write_whole(whole / ARRAYS, save(arrays))
        os.replace(whole, folder)
    return sum(file.stat().st_size for file in folder.iterdir())


def read_pack(folder: Path) -> dict[str, Any]:
    """Reads what `write_pack` wrote.

    Raises:
        CheckpointError: the folder holds something else.
        OSError: a file cannot be read.
    """
    check_is_folder(folder)
    if missing := [name for name in (DATA, ARRAYS) if not (folder / name).is_file()]:
        raise CheckpointError(
            f"{folder} is not a pack written by `jaxllm parity record`: it has no "
            f"{' and no '.join(missing)}"
        )
    text = read_bytes(folder / DATA)
    (folder / ARRAYS).open("rb").close()  # safetensors reports an unreadable file as missing
    try:
        data = _with_arrays(parse_json(text), load_file(folder / ARRAYS))
    except Exception as error:  # safetensors raises various types for truncated files
        raise CheckpointError(f"{folder} is damaged: {error}") from None
    if not isinstance(data, dict) or data.get("version") != VERSION:
        found = data.get("version") if isinstance(data, dict) else None
        raise CheckpointError(
            f"{folder} is a pack of version {found}, not {VERSION}: record it again with "
            "`jaxllm parity record`"
        )
    return data


def _without_arrays(data: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(data, dict):
        return {key: _without_arrays(value, arrays) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_without_arrays(value, arrays) for value in data]
    if isinstance(data, np.ndarray):
        name = str(len(arrays))
        arrays[name] = np.ascontiguousarray(data)
        return {ARRAY: name}
    return data


def _with_arrays(data: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(data, dict):
        if data.keys() == {ARRAY}:
            return arrays[data[ARRAY]]
        return {key: _with_arrays(value, arrays) for key, value in data.items()}
    return [_with_arrays(value, arrays) for value in data] if isinstance(data, list) else data
