"""Writes native checkpoints chunk by chunk, so that no array is ever whole in memory.

Orbax writes whole arrays only. It therefore writes a checkpoint of placeholders, and TensorStore
replaces these by the arrays, in the format that Orbax reads.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
from orbax.checkpoint import v1 as ocp

from jaxllm.checkpoint_origin import KEPT, Origin
from jaxllm.checkpointing.digests import Sums, digest_json, part_sums, to_text, zero_sums
from jaxllm.checkpointing.orbax_layout import (
    DIGESTS,
    METADATA_FILE,
    METADATA_KEY,
    array_spec,
    read_step,
    step_metadata,
)
from jaxllm.config import Config
from jaxllm.errors import CheckpointError
from jaxllm.interop.rules.boxes import box_shape, boxes, slices
from jaxllm.models import build_abstract
from jaxllm.params import describe, map_parameters
from jaxllm.storage.paths import check_is_utf8

from . import orbax
from .file_writer import Digest, Progress, check_space, sync
from .lazy_tensor import TensorSource

CHUNK_BYTES = 4 << 20
CODECS = [
    {"name": "bytes", "configuration": {"endian": "little"}},
    {"name": "zstd", "configuration": {"level": 1}},
]


class OrbaxWriter:
    """Writes a native checkpoint. A unit is a chunk of an array; see `table.CheckpointWriter`."""

    format_name = orbax.NAME
    files_folder = KEPT

    def __init__(self, config: Config, origin: Origin | None, arrays: Mapping[str, TensorSource]):
        self.arrays = arrays
        self._abstract = build_abstract(config)
        self._abstract.origin = origin
        self._stores: dict[str, tensorstore.TensorStore] = {}
        self._sums: dict[str, Sums] = {}  # of the units that are written, for the arrays' digests
        self._places = {
            f"{name} {list(map(list, box))}": (name, box)
            for name, array in self.arrays.items()
            for box in boxes(array.shape, CHUNK_BYTES // array.dtype.itemsize)
        }
        self.units: Mapping[str, int] = {
            unit: math.prod(box_shape(box)) * self.arrays[name].dtype.itemsize
            for unit, (name, box) in self._places.items()
        }
        # A whole unit, and a part of it in another layout or compressed.
        self.most_held = max(self.units.values(), default=0) * 5 // 4

    def plan(self) -> str:
        """See `table.CheckpointWriter`."""
        arrays = {name: (array.dtype.name, array.shape) for name, array in self.arrays.items()}
        return json.dumps([describe(self._abstract), arrays, list(self.units)])

    def begin(self, folder: Path) -> None:
        """See `table.CheckpointWriter`."""
        check_is_utf8(folder)
        step = _step(folder)
        for leftover in step.parent.glob("*-tmp*"):  # Orbax was killed while it was writing
            shutil.rmtree(leftover)
        if not step.exists():
            folder.mkdir(exist_ok=True)
            check_space(folder, sum(self.units.values()))
            placeholders = map_parameters(self._abstract, lambda name, _: np.zeros(1, np.uint8))
            about = {METADATA_KEY: describe(self._abstract)}
            ocp.save_checkpointables(step, {"model": placeholders}, custom_metadata=about)
        if (step / METADATA_FILE).exists():
            os.replace(step / METADATA_FILE, step / f"{METADATA_FILE}.partial")
        self._stores = {name: _lay_out(step, name, array) for name, array in self.arrays.items()}

    def write(self, folder: Path, unit: str, chunk_bytes: int, progress: Progress) -> Digest:
        """See `table.CheckpointWriter`. A unit is a chunk already, so `chunk_bytes` is ignored."""
        name, box = self._places[unit]
        array = np.ascontiguousarray(self.arrays[name].read(box))
        self._stores[name][slices(box)].write(array).result()
        self._add_up(unit, array)
        progress(array.nbytes)
        return Digest(_sha256(array), 0)

    def written(self, folder: Path, unit: str) -> str:
        """See `table.CheckpointWriter`."""
        name, box = self._places[unit]
        array = self._stores[name][slices(box)].read().result()
        self._add_up(unit, array)
        return _sha256(array)

    def holds(self, folder: Path, chunk_bytes: int) -> bool:
        """See `table.CheckpointWriter`. Units are chunks already, so `chunk_bytes` is ignored."""
        try:
            about = dict(read_step(_step(folder)).about)
        except CheckpointError:
            return False
        digests = about.pop(DIGESTS, {})
        if digest_json(about) != digest_json(describe(self._abstract)):
            return False
        for unit, (name, box) in self._places.items():
            self._add_up(unit, self.arrays[name].read(box))
        return digests.get("model") == self._digests()

    def finish(self, folder: Path, digests: Mapping[str, Digest]) -> None:
        """See `table.CheckpointWriter`."""
        self._stores = {}
        step = _step(folder)
        self._write_metadata(step / f"{METADATA_FILE}.partial")
        for path in folder.rglob("*"):
            sync(path)
        os.replace(step / f"{METADATA_FILE}.partial", step / METADATA_FILE)
        sync(step)

    def _add_up(self, unit: str, array: np.ndarray) -> None:
        name, box = self._places[unit]
        self._sums[unit] = part_sums(array, box, self.arrays[name].shape)

    def _write_metadata(self, file: Path) -> None:
        """Adds the digests of all arrays to the metadata that Orbax wrote."""
        metadata = json.loads(file.read_bytes())
        digests = {"model": self._digests()}
        metadata["custom_metadata"] = step_metadata(describe(self._abstract), digests)
        file.write_text(json.dumps(metadata))

    def _digests(self) -> dict[str, str]:
        """Returns the digests of the arrays, whose units are all added up."""
        sums = {name: zero_sums() for name in self.arrays}
        for unit, (name, _) in self._places.items():
            sums[name] += self._sums[unit]
        return {name: to_text(total) for name, total in sums.items()}


def _step(folder: Path) -> Path:
    """Returns the folder of the only step, in the form of a run."""
    return folder / "checkpoints" / "0"


def _lay_out(step: Path, name: str, array: TensorSource) -> tensorstore.TensorStore:
    """Opens the stored array of an earlier attempt, or creates it without data."""
    chunk = next(boxes(array.shape, CHUNK_BYTES // array.dtype.itemsize))
    metadata: dict[str, Any] = {
        "shape": array.shape,
        "data_type": array.dtype.name,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": box_shape(chunk)},
        },
        "codecs": CODECS,
    }
    # All files are flushed to disk at the end, not one by one.
    context = tensorstore.Context({"file_io_sync": False})
    spec = {**array_spec(step, "model", name), "driver": "zarr3"}
    # Orbax reports a chunk without a file as lost, so chunks of zeros must be stored too.
    spec["store_data_equal_to_fill_value"] = True
    found = tensorstore.open(spec, context=context).result()
    if found.shape == array.shape and found.dtype.numpy_dtype == array.dtype:
        return found
    new = {**spec, "metadata": metadata}
    return tensorstore.open(new, create=True, delete_existing=True, context=context).result()


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()
