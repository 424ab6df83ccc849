"""Saves models as checkpoints, in the format of any family that can express them."""

import collections
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from jaxllm.checkpoint_origin import KEPT, copy_files
from jaxllm.errors import CheckpointArgumentError
from jaxllm.interop.formats.byte_sizes import parse_size
from jaxllm.interop.formats.file_writer import (
    PlannedFile,
    check_space,
    create,
    fill,
    finish,
    sync,
    write_files,
)
from jaxllm.interop.formats.lazy_tensor import TensorSource
from jaxllm.interop.formats.table import model_format
from jaxllm.interop.loading.model_arrays import arrays_of_model
from jaxllm.models import Model
from jaxllm.storage.paths import check_output

from .carried import keep_carried
from .export import plan_export, possible_families, write_texts
from .multihost import fail_together, is_first_process, shared_name


def save_pretrained(
    model: Model,
    path: str | Path,
    *,
    format: str | None = None,  # noqa: A002 - the word that users expect
    model_parallel: int | None = None,
    max_shard: int | str = "5GB",
    rules: Any = None,
) -> None:
    """Saves a model in a format that transformers, Meta's code, tlama-core or jaxllm reads.

    The checkpoint appears under its name only when it is complete. In a multi-host run every
    process must call this; process 0 writes the files of other frameworks.

    Args:
        model: a model from `load_pretrained` or from training, with scanned layers or not.
        path: a folder that does not exist yet, or is empty.
        format: one of `formats.table.FORMATS`, such as "hf", "meta" or "native". By default the
            format that the model was loaded from, or "hf" for a new model.
        model_parallel: the number of shards to write, for "meta"; by default as many as were read.
        max_shard: the most bytes of tensors in a safetensors shard, or a text like "5GB".
        rules: rules for a model of your own (docs/rules.md). Rules that the model was loaded with
            in this process need not be given again.

    Raises:
        CheckpointError: the folder is not empty, or the format cannot express the model.
        UserError: `max_shard` is not a size.

    Example:
        save_pretrained(model, "out", format="hf")
    """
    path = check_output(path).resolve()
    families = possible_families(model.origin, format, model_parallel, rules)
    arrays = arrays_of_model(model)
    together = arrays.span_processes
    write: Callable[[Path], None]
    texts: Mapping[str, bytes] = {}
    if (own_format := model_format(format)) is not None:
        write = partial(own_format.save, model)
    else:
        shard = parse_size(max_shard)
        export = plan_export(arrays, families, model_parallel, shard, format)
        write = partial(write_tensor_files, export.files, export.tensors, together)
        texts = export.texts
    copies = [partial(copy_files, model.origin)]
    if own_format is not None:
        copies.append(partial(keep_carried, model.origin))
    inside = KEPT if own_format is not None else ""
    write_checkpoint(path, write, texts, copies, inside=inside, together=together)


def write_checkpoint(
    path: Path,
    write: Callable[[Path], None],
    texts: Mapping[str, bytes],
    copies: Sequence[Callable[[Path], None]] = (),
    *,
    inside: str = "",
    together: bool,
) -> None:
    """Writes a checkpoint that appears under its name only when it is complete.

    Args:
        path: a folder that does not exist yet, or is empty.
        write: writes the tensors into a folder.
        texts: the small files to write after them, by name.
        copies: copy files of another checkpoint into a folder.
        inside: the folder within the checkpoint that `copies` get.
        together: whether all processes write one checkpoint.

    Raises:
        CheckpointError: the folder is not empty.
    """
    with fail_together(together):
        check_is_free(path)
    with _complete_folder(path, together) as folder:
        write(folder)
        with fail_together(together):
            if is_first_process() or not together:
                (folder / inside).mkdir(exist_ok=True)
                for copy in copies:
                    copy(folder / inside)
                write_texts(folder, texts)


def write_tensor_files(
    files: Sequence[PlannedFile],
    tensors: Mapping[str, TensorSource],
    together: bool,
    folder: Path,
) -> None:
    """Writes the tensor files, from one process or from all together."""
    if together:
        _write_together(files, tensors, folder)
    else:
        write_files(folder, files, tensors)


def _write_together(
    files: Sequence[PlannedFile], tensors: Mapping[str, TensorSource], folder: Path
) -> None:
    """Writes the tensor files: all processes gather one tensor at a time, process 0 writes it."""
    with fail_together(True):
        if is_first_process():
            check_space(folder, sum(file.size for file in files))
            for file in files:
                create(folder, file)
    digests = {}
    for file in files:
        for name in file.places:
            tensor = tensors[name]
            with fail_together(True):
                if is_first_process():
                    digests[name] = fill(folder, file, name, tensor, chunk_bytes=tensor.nbytes)
                else:
                    collections.deque(tensor.payload(tensor.nbytes), maxlen=0)
    with fail_together(True):
        if is_first_process():
            for file in files:
                finish(folder, file, digests)


def check_is_free(path: Path) -> None:
    """Raises CheckpointArgumentError unless `path` does not exist or is an empty folder."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointArgumentError(f"{path} exists and is not an empty folder; choose a new one")


@contextmanager
def _complete_folder(path: Path, together: bool) -> Iterator[Path]:
    """Yields a temporary folder beside `path`, which is renamed to `path` on success."""
    folder = path.with_name(f"{path.name}.{shared_name(together)}.partial")
    is_ours = is_first_process() or not together
    try:
        with fail_together(together):
            if is_ours:
                folder.mkdir(parents=True)
        yield folder
        with fail_together(together):
            if is_ours:
                take_name(folder, path)
    finally:
        if is_ours:
            shutil.rmtree(folder, ignore_errors=True)


def take_name(folder: Path, path: Path) -> None:
    """Renames a complete folder to `path` atomically; `path` may be an empty folder."""
    sync(folder)
    os.replace(folder, path)
    sync(path.parent)
