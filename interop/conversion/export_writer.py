"""Writes a family's checkpoint tensor by tensor, in any order, resumable after a kill."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from jaxllm.interop.formats.file_writer import (
    Digest,
    Progress,
    check_space,
    create,
    fill,
    finish,
    in_threads,
    is_laid_out,
    partial_path,
    stored_sha256,
)
from jaxllm.interop.saving.export import Export, write_texts


class ExportWriter:
    """Writes a PyTorch checkpoint. A unit is a tensor; see `formats.table.CheckpointWriter`."""

    files_folder = "."
    most_held = 0

    def __init__(self, export: Export):
        self._export = export
        self.format_name = export.family.name
        self.units: Mapping[str, int] = {
            name: tensor.nbytes for name, tensor in export.tensors.items()
        }
        self._file_of = {name: file for file in export.files for name in file.places}

    def plan(self) -> str:
        """See `formats.table.CheckpointWriter`."""
        export = self._export
        files = [(file.name, file.size, sorted(file.places.items())) for file in export.files]
        texts = {name: text.decode() for name, text in export.texts.items()}
        arrays = {name: (array.dtype.name, array.shape) for name, array in export.tensors.items()}
        return json.dumps([files, texts, arrays])

    def begin(self, folder: Path) -> None:
        """See `formats.table.CheckpointWriter`."""
        if not folder.exists():
            folder.mkdir()
            check_space(folder, sum(file.size for file in self._export.files))
        for file in self._export.files:
            if (folder / file.name).exists():  # killed after the last tensor was written
                os.replace(folder / file.name, partial_path(folder, file))
            create(folder, file)

    def write(self, folder: Path, unit: str, chunk_bytes: int, progress: Progress) -> Digest:
        """See `formats.table.CheckpointWriter`."""
        return fill(
            folder,
            self._file_of[unit],
            unit,
            self._export.tensors[unit],
            chunk_bytes=chunk_bytes,
            hashed=True,
            progress=progress,
        )

    def written(self, folder: Path, unit: str) -> str:
        """See `formats.table.CheckpointWriter`."""
        file = self._file_of[unit]
        return stored_sha256(partial_path(folder, file), file.places[unit], self.units[unit])

    def holds(self, folder: Path, chunk_bytes: int) -> bool:
        """See `formats.table.CheckpointWriter`."""
        export = self._export
        texts = {folder / name: text for name, text in export.texts.items()}
        if not all(is_laid_out(folder, file) for file in export.files):
            return False
        if not all(path.is_file() and path.read_bytes() == text for path, text in texts.items()):
            return False

        def is_same(unit: str) -> bool:
            file, sha256 = self._file_of[unit], hashlib.sha256()
            for chunk in export.tensors[unit].payload(chunk_bytes):
                with chunk:
                    sha256.update(chunk)
            stored = stored_sha256(folder / file.name, file.places[unit], self.units[unit])
            return stored == sha256.hexdigest()

        return all(in_threads(is_same, list(self.units)))

    def finish(self, folder: Path, digests: Mapping[str, Digest]) -> None:
        """See `formats.table.CheckpointWriter`."""
        for file in self._export.files:
            finish(folder, file, digests)
        write_texts(folder, self._export.texts)
