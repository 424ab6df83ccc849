"""Journal of a conversion: the tensors already written, so that the same command can resume."""

import json
import reprlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from jaxllm.checkpointing.file_lock import claim
from jaxllm.errors import CheckpointArgumentError, CheckpointError
from jaxllm.interop.formats.file_writer import Digest
from jaxllm.untrusted.json_objects import parse_json
from jaxllm.untrusted.regular_files import check_is_regular

NAME = "journal.jsonl"


class Journal:
    """A file of JSON lines: the plan, then the checksums of every tensor written.

    Only one process can have it open. A line that was cut short by a kill is ignored.

    Attributes:
        done: the checksums of the tensors already written, by name.
    """

    def __init__(self, path: Path, plan: Mapping[str, Any]):
        """Opens the journal of an earlier attempt, or begins one.

        Args:
            path: the file.
            plan: everything that must be equal to resume, by name.

        Raises:
            CheckpointArgumentError: another process has the journal open, or it has another plan,
                or it is damaged.
        """
        if path.exists():
            check_is_regular(path)
        self._stream = path.open("a+b")
        self._lock = threading.Lock()
        try:
            self._claim(path)
            self._stream.seek(0)
            lines = self._stream.read().split(b"\n")
            kept = b"".join(line + b"\n" for line in lines[:-1])  # the last is empty, or cut short
            self._stream.truncate(len(kept))
            first, *rest = [*_entries(path, lines[:-1])] or [None]
            if first is None:
                self._append({"plan": plan})
            elif differences := _differences(first, plan):
                raise CheckpointArgumentError(differences, _other_plan(path.parent))
            self.done = dict(rest)
        except BaseException:
            self._stream.close()
            raise

    def add(self, tensor: str, digest: Digest) -> None:
        """Records that a tensor has been written."""
        with self._lock:
            self._append({"tensor": tensor, "digest": digest})
            self.done[tensor] = digest

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def _claim(self, path: Path) -> None:
        if not claim(self._stream):
            raise CheckpointArgumentError(f"{path.parent} is being written by another process")

    def _append(self, entry: Mapping[str, Any]) -> None:
        self._stream.write(json.dumps(entry).encode() + b"\n")
        self._stream.flush()


def _entries(path: Path, lines: Sequence[bytes]) -> Iterator[Any]:
    """Yields the plan, then the name and the checksums of each tensor.

    Raises CheckpointArgumentError for a line that `Journal` does not write.
    """
    for number, line in enumerate(lines, 1):
        try:
            entry = parse_json(line)
        except CheckpointError as error:
            raise CheckpointArgumentError(_damaged(path, number, str(error))) from None
        match entry:
            case {"plan": dict() as plan} if number == 1:
                yield plan
            case {"tensor": str(name), "digest": [str(sha256), int(crc32)]} if number > 1:
                yield name, Digest(sha256, crc32)
            case _:
                what = "the plan" if number == 1 else "a tensor and its digest"
                problem = f"{reprlib.repr(entry)} is not {what}"
                raise CheckpointArgumentError(_damaged(path, number, problem))


def _damaged(path: Path, line: int, problem: str) -> str:
    return f"{path}, line {line}: {problem}; delete {path.parent} to start the conversion over"


def _other_plan(folder: Path) -> str:
    return (
        f"{folder} holds an unfinished conversion that was started with different arguments or "
        "files; rerun with those to resume it, or delete the folder to start over"
    )


def _differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns a message for each difference between two plans."""
    earlier = json.loads(json.dumps(earlier))
    now = json.loads(json.dumps(now))
    return [
        f"{name} was {earlier.get(name)!r}, now it is {now.get(name)!r}"
        for name in {**earlier, **now}
        if earlier.get(name) != now.get(name)
    ]
