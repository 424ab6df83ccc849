"""A mirror: small files that a process writes on this machine, copied to an object store.

Object stores have no appending: a log is written here, and the whole of it is copied now and then.
"""

import logging
import shutil
import tempfile
import threading
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from jaxllm.errors import UserError, first_line

from .paths import file_system, is_remote, to_address

log = logging.getLogger("jaxllm")

EVERY_S = 20.0  # between two copies
UNFINISHED = (".tmp", ".partial")  # suffixes of files that are being written


class Mirror:
    """A folder on this machine whose files are copied to a remote folder, until it is closed.

    Args:
        remote: the folder on an object store, an `epath.Path`.
        fetched: patterns of the files that are fetched from it first, such as `*.jsonl`.
    """

    def __init__(self, remote: Any, fetched: tuple[str, ...] = ()):
        self.local = Path(tempfile.mkdtemp(prefix="jaxllm-")) / remote.name
        self.local.mkdir()
        self._remote = remote
        self._copied: dict[Path, tuple[int, int]] = {}  # when it was changed, and its size
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._said = ""
        for file in remote.iterdir() if fetched and remote.is_dir() else ():
            if any(fnmatchcase(file.name, pattern) for pattern in fetched):
                (self.local / file.name).write_bytes(file.read_bytes())
                self._copied[Path(file.name)] = self._version(Path(file.name))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def copy(self) -> None:
        """Copies what has changed. Raises UserError if it cannot be written."""
        with self._lock:
            for name in sorted(path.relative_to(self.local) for path in self.local.rglob("*")):
                self._copy(name)

    def close(self) -> None:
        """Copies what has changed since the last time, and removes the folder of this machine."""
        self._closed.set()
        self._thread.join()
        try:
            self.copy()
        finally:
            shutil.rmtree(self.local.parent, ignore_errors=True)

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _copy(self, name: Path) -> None:
        file = self.local / name
        if file.is_dir() or file.name.startswith(".") or file.suffix in UNFINISHED:
            return
        try:
            version, content = self._version(name), file.read_bytes()
        except FileNotFoundError:  # it was replaced just now
            return
        if self._copied.get(name) == version:
            return
        target = self._remote / name.as_posix()
        try:
            target.write_bytes(content)
        except Exception as error:
            raise UserError(f"{target} cannot be written: {first_line(error)}") from error
        self._copied[name] = version

    def _version(self, name: Path) -> tuple[int, int]:
        stat = (self.local / name).stat()
        return stat.st_mtime_ns, stat.st_size

    def _run(self) -> None:
        while not self._closed.wait(EVERY_S):
            try:
                self.copy()
            except UserError as error:  # perhaps for a while; the last copy raises it
                if str(error) != self._said:
                    log.warning("%s; trying again", error)
                self._said = str(error)


def copy_folder(folder: Path, remote: Any) -> None:
    """Copies a folder of this machine to an object store, all of it or an error.

    Raises:
        UserError: a file cannot be written.
    """
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            target = remote / file.relative_to(folder).as_posix()
            try:
                target.write_bytes(file.read_bytes())
            except Exception as error:
                raise UserError(f"{target} cannot be written: {first_line(error)}") from error


def move(folder: Any, target: Any) -> None:
    """Moves a folder, on this machine or within an object store, object by object.

    s3fs cannot move a folder at once: it takes its name for an object.

    Raises:
        UserError: an object cannot be copied; then nothing is removed.
    """
    if not is_remote(folder):
        folder.replace(target)
        return
    source, goal = to_address(folder), to_address(target)
    system, kind = file_system(source), source.partition("://")[0]
    system.invalidate_cache()
    names = [f"{kind}://{name.strip('/')}" for name in system.find(source) if name[-1] != "/"]
    for name in names:
        try:
            system.cp_file(name, goal + name.removeprefix(source))
        except Exception as error:
            raise UserError(f"{goal} cannot be written: {first_line(error)}") from error
    for name in names:
        system.rm_file(name)
    system.invalidate_cache()
