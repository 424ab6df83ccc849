"""Downloads from object stores into a cache on this machine, for code that reads local files."""

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import uuid4

from jaxllm.errors import MissingFileError, UserError, first_line

from .paths import file_system, to_address

CACHE = "JAXLLM_CACHE"  # the variable that names the folder; by default ~/.cache/jaxllm
COMMITTED = "commit_success.txt"  # Orbax writes it into a step on an object store at its end
THREADS = 16
_DESCRIPTIONS = (".json", ".yaml", ".yml")
# Folders of a run that are not downloaded.
_NOT_OF_A_RUN = ("aside", "tensorboard", "profile", "wandb")
_SMALL = ("_METADATA", "_sharding")  # files of the optimizer's state that are downloaded


def cache_folder() -> Path:
    """Returns the folder of what can be downloaded or computed again."""
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "jaxllm")


def download(path: str | os.PathLike[str]) -> Path:
    """Downloads a file or a folder, unless the cached copy is current; returns its path.

    Of a run, only the newest complete checkpoint is downloaded, without the optimizer's state.

    Raises:
        MissingFileError: nothing is there.
        UserError: the store cannot be read.
    """
    address = to_address(path).rstrip("/")
    files, names = _listed(address)
    if not files:
        raise MissingFileError(f"{address}: nothing is there")
    return _fetch(address, {name: files[name] for name in names})


def download_small(path: str | os.PathLike[str]) -> Path:
    """Downloads a file, or the files of a folder itself that describe what is in it: no weights.

    Raises:
        MissingFileError: nothing is there, or no such file.
        UserError: the store cannot be read.
    """
    address = to_address(path).rstrip("/")
    files, _ = _listed(address)
    if "." in files:  # the address is that of a file
        return _fetch(address, {".": files["."]})
    own = {
        name: about
        for name, about in files.items()
        if "/" not in name and name.endswith(_DESCRIPTIONS)
    }
    if not own:
        raise MissingFileError(f"{address}: nothing is there that describes a run or a model")
    return _fetch(address, own)


def find_matching(pattern: str) -> dict[str, int]:
    """Returns the addresses of the files that match a pattern, in order, and their sizes."""
    address = to_address(pattern)
    system, kind = file_system(address), address.partition("://")[0]
    system.invalidate_cache()
    found = _reading(address, lambda: system.glob(address, detail=True))
    return {
        f"{kind}://{name.lstrip('/')}": about["size"]
        for name, about in sorted(found.items())
        if about["type"] == "file"
    }


def needed_of_run(names: Sequence[str]) -> list[str]:
    """Returns the files of a folder to download: of a run those that are needed, otherwise all.

    Args:
        names: the files, relative to the folder.
    """
    committed = [re.fullmatch(rf"checkpoints/(\d+)/{COMMITTED}", name) for name in names]
    steps = [int(found[1]) for found in committed if found]
    if "config.yaml" not in names or not steps:
        return list(names)
    newest = f"checkpoints/{max(steps)}/"
    return [
        name
        for name in names
        if (name.startswith(newest) if name.startswith("checkpoints/") else True)
        and name.partition("/")[0] not in _NOT_OF_A_RUN
        and (f"{newest}optimizer/" not in name or PurePosixPath(name).name in _SMALL)
    ]


def _listed(address: str) -> tuple[dict[str, Any], list[str]]:
    """Returns what is under an address by relative name, and the names to download."""
    system = file_system(address)
    system.invalidate_cache()
    found = _reading(address, lambda: system.find(address, detail=True))
    root = address.partition("://")[2]
    objects = {
        name.lstrip("/"): about
        for name, about in found.items()
        if about.get("type") == "file" and not name.endswith("/")
    }
    for name in objects:
        if ".." in name.split("/"):
            raise UserError(
                f"{address}: an object's name has a part '..', which is refused: {name}"
            )
    files = {os.path.relpath(name, root): about for name, about in objects.items()}
    return files, needed_of_run(sorted(files))


def _fetch(address: str, files: dict[str, Any]) -> Path:
    """Downloads files under an address to a folder whose name is a digest of their versions."""
    version = {name: _identity(about) for name, about in files.items()}
    text = json.dumps([address, version], sort_keys=True)
    digest = blake2b(text.encode(), digest_size=12).hexdigest()
    folder = cache_folder() / "downloads" / digest
    name = address.rpartition("/")[2]
    if not folder.is_dir():
        unfinished = folder.with_name(f"{digest}.{uuid4().hex}")
        try:
            _copy(address, [*files], unfinished / name)
            unfinished.replace(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster
                raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder / name


def _copy(address: str, names: Sequence[str], target: Path) -> None:
    system = file_system(address)

    def copy(name: str) -> None:
        source, file = (address, target) if name == "." else (f"{address}/{name}", target / name)
        file.parent.mkdir(parents=True, exist_ok=True)
        _reading(source, lambda: system.get_file(source, str(file)))

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(copy, names))


def _identity(about: dict[str, Any]) -> str:
    """Returns a text that changes whenever an object is overwritten."""
    fields = ("generation", "etag", "ETag", "md5Hash", "LastModified", "created", "mtime", "size")
    return " ".join(str(about[field]) for field in fields if field in about)


def _reading(address: str, read: Callable[[], Any]) -> Any:
    """Calls `read` and returns its result; raises a store's error as a UserError of one line."""
    try:
        return read()
    except FileNotFoundError:
        raise MissingFileError(f"{address}: nothing is there") from None
    except Exception as error:
        raise UserError(f"{address} cannot be read: {first_line(error)}") from error
