"""Tokenizes files into a folder of shards: in parallel, and again from where it was interrupted."""

import dataclasses
import json
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxllm.errors import UserError
from jaxllm.storage.whole_file import write_whole
from jaxllm.train.data.files import BadRows, Policy, Row, find_files
from jaxllm.train.data.held_out import content_hash

from .building import BATCH, Source
from .manifest import FILE, SPLITS, Manifest, Shard, describe_shard
from .stream_writer import Encoded, StreamWriter

UNIT_BYTES = 1 << 28  # of files that are one task of a process
SHARD_TOKENS = 1 << 27
STARTED = "started.json"

log = logging.getLogger("jaxllm")


class Task(NamedTuple):
    """Files that one process tokenizes, and the shards that it has made of them so far."""

    number: int
    files: tuple[str, ...]
    sizes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Options:
    """The settings that shards depend on. A folder begun with others is not continued."""

    files: tuple[str, ...]
    sizes: tuple[int, ...]
    tokenizer: str  # its fingerprint
    vocab_size: int
    made_by: Mapping[str, Any]  # the options of the command
    held_out: float
    bad_rows: Policy
    shard_tokens: int = SHARD_TOKENS
    unit_bytes: int = UNIT_BYTES


# Makes the documents of some files; it is called in each process.
OpenSource = Callable[[Sequence[str]], Source]
# Is told the share of the work that is done, and the tokens.
Show = Callable[[float, int], None]


def tokenize_files(
    open_source: OpenSource, options: Options, folder: Path, workers: int, show: Show
) -> Manifest:
    """Tokenizes files into shards, and writes the manifest at the end.

    The shards do not depend on the number of workers, nor on interruptions.

    Args:
        open_source: makes the documents of files; picklable.
        options: see `Options`.
        folder: receives the shards; one that was begun with the same options is continued.
        workers: the number of processes.
        show: is called now and then.

    Raises:
        UserError: the folder was begun with other options, or a file cannot be read.
    """
    _begin(folder, options)
    tasks = [*_tasks(options)]
    total = sum(options.sizes) or 1
    done, tokens = dict.fromkeys(range(len(tasks)), 0.0), dict.fromkeys(range(len(tasks)), 0)

    def note(number: int, share: float, count: int) -> None:
        done[number], tokens[number] = share, count
        show(
            sum(sum(task.sizes) * done[task.number] for task in tasks) / total,
            sum(tokens.values()),
        )

    run = partial(run_task, open_source, options, folder)
    if workers == 1:
        for task in tasks:
            run(task, partial(note, task.number))
    else:
        _run_parallel(run, tasks, workers, note)
    records = [_read_progress(folder, task) for task in tasks]
    manifest = Manifest(
        options.tokenizer,
        options.vocab_size,
        options.made_by,
        sum(record["skipped"] for record in records),
        tuple(Shard(**shard) for record in records for shard in record["shards"]),
    )
    manifest.write(folder)
    for leftover in (folder / STARTED, *(_progress_file(folder, task) for task in tasks)):
        leftover.unlink()
    return manifest


def _run_parallel(
    run: Callable[[Task], int],
    tasks: Sequence[Task],
    workers: int,
    note: Callable[[int, float, int], None],
) -> None:
    """Runs tasks in processes of their own, each with its share of the cores."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _set_threads, (threads,)) as pool:
        running = {pool.submit(run, task): task for task in tasks}
        try:
            for future in as_completed(running):
                note(running[future].number, 1.0, future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _set_threads(threads: int) -> None:
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # of the package tokenizers


def run_task(
    open_source: OpenSource,
    options: Options,
    folder: Path,
    task: Task,
    note: Callable[[float, int], None] = lambda share, tokens: None,
) -> int:
    """Tokenizes the files of a task, from the shard on that is not written; returns its tokens."""
    record = _read_progress(folder, task)
    tokens = sum(shard["tokens"] for shard in record["shards"])
    if record["finished"]:
        note(1.0, tokens)
        return tokens
    source = open_source(task.files)
    rows = BadRows(options.bad_rows)
    rows.rows, rows.skipped, rows.first = record["rows"], record["skipped"], record["first"]
    share = _shares(task)
    shard = _OpenShard(folder, task, record["number"], source)

    def close(is_finished: bool) -> None:
        record["shards"] += [dataclasses.asdict(each) for each in shard.close()]
        record.update(rows=rows.rows, skipped=rows.skipped, first=rows.first, finished=is_finished)
        record["number"] = shard.number
        write_whole(_progress_file(folder, task), json.dumps(record))

    try:
        for batch in _batched(source.read(rows, record["rows"])):
            for _, (document, encoded) in rows.encoded(batch, _with_document(source), BATCH):
                is_held = content_hash(source.content(document)) / 2**48 < options.held_out
                shard.add(is_held, encoded)
                tokens += len(encoded.ids)
            note(share(batch[-1][0]), tokens)
            if shard.num_tokens >= options.shard_tokens:
                close(False)
        close(True)
    finally:
        shard.abandon()
        source.close()
    rows.report()
    return tokens


class _OpenShard:
    """The shard that is being written, one file for each split that has documents."""

    def __init__(self, folder: Path, task: Task, number: int, source: Source):
        self._folder, self._task, self.number, self._source = folder, task, number, source
        self._writers: dict[str, StreamWriter] = {}

    @property
    def num_tokens(self) -> int:
        """Its tokens so far."""
        return sum(writer.num_tokens for writer in self._writers.values())

    def add(self, is_held: bool, encoded: Encoded) -> None:
        """Appends a document to its split."""
        split = SPLITS[is_held]
        if split not in self._writers:
            file = self._folder / f"{split}-{self._task.number:05}-{self.number:05}.npy"
            dtype = np.min_scalar_type(self._source.vocab_size - 1)
            targets = self._source.has_targets
            self._writers[split] = StreamWriter(dtype, file, with_targets=targets)
        self._writers[split].add([encoded])

    def close(self) -> Iterator[Shard]:
        """Yields what was written, and begins the next shard."""
        for split in SPLITS:
            if writer := self._writers.pop(split, None):
                writer.close()
                assert writer.file is not None, "a shard is a file"
                yield describe_shard(writer.file, split)
        self.number += 1

    def abandon(self) -> None:
        """Removes what is unfinished."""
        for writer in self._writers.values():
            writer.abandon()


def _with_document(source: Source) -> Callable[[Sequence[Any]], list[tuple[Any, Any]]]:
    def encode(documents: Sequence[Any]) -> list[tuple[Any, Any]]:
        return [*zip(documents, source.encode(documents), strict=True)]

    return encode


def _batched(given: Any) -> Iterator[list[tuple[Row, Any]]]:
    iterator = iter(given)
    while batch := [*islice(iterator, BATCH)]:
        yield batch


def _tasks(options: Options) -> Iterator[Task]:
    """Groups files, in order, until each group has enough bytes."""
    group: list[tuple[str, int]] = []
    number = 0
    for pair in zip(options.files, options.sizes, strict=True):
        group.append(pair)
        if sum(size for _, size in group) >= options.unit_bytes:
            yield Task(number, *zip(*group, strict=True))
            group, number = [], number + 1
    if group:
        yield Task(number, *zip(*group, strict=True))


def _shares(task: Task) -> Callable[[Row], float]:
    """Returns a function from a row to the share of the task's bytes that is read with it."""
    before, total = {}, 0
    for file, size in zip(task.files, task.sizes, strict=True):
        before[str(Path(file))] = before[Path(file).name] = total, size
        total += size

    def share(row: Row) -> float:  # a file of an object store is read from a copy
        first, size = before.get(str(row.file)) or before.get(row.file.name, (0, 0))
        return (first + row.share * size) / max(total, 1)

    return share


def _begin(folder: Path, options: Options) -> None:
    """Begins a folder, or checks that it was begun with the same options."""
    described = json.loads(json.dumps(dataclasses.asdict(options)))
    started = folder / STARTED
    if (folder / FILE).exists():
        raise UserError(f"{folder} already has token shards; give another folder")
    if not started.exists():
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} is not empty; give another folder")
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(started, json.dumps(described))
        return
    before = json.loads(started.read_bytes())
    if changed := sorted(name for name in described if before.get(name) != described[name]):
        raise UserError(
            f"{folder} was begun with other {', '.join(changed)}; run the same command to continue "
            "it, or give another folder"
        )
    log.info("continuing %s", folder)


def _progress_file(folder: Path, task: Task) -> Path:
    return folder / f"progress-{task.number:05}.json"


def _read_progress(folder: Path, task: Task) -> dict[str, Any]:
    file = _progress_file(folder, task)
    if file.exists():
        return dict(json.loads(file.read_bytes()))
    return {"rows": 0, "skipped": 0, "first": "", "shards": [], "number": 0, "finished": False}


def sizes_of(patterns: Sequence[str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Returns the files that patterns match, and their sizes."""
    found = find_files(patterns)
    return tuple(found), tuple(found.values())
