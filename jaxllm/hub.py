"""Checkpoints on the Hugging Face hub: `hf://org/name@revision` wherever a path is taken.

One file of a repository with many, each of them a model: `hf://org/name/file.gguf@revision`.

The package huggingface_hub downloads what is needed into its cache, goes on where a download was
interrupted, and takes its token and address from its own settings.
"""

import logging
import os
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import (
    CheckpointError,
    MissingPackageError,
    UserError,
    did_you_mean,
    first_line,
    listed,
)
from .storage.download import download
from .storage.paths import is_remote

# `Path` turns the two slashes into one.
_ADDRESS = re.compile(r"hf:/{1,2}([\w.-]+(?:/[\w.-]+)?)(?:/([\w./-]+\.gguf))?(?:@([\w./-]+))?/?")
_GGUF = ".gguf"
_FORMS = "hf://ORG/NAME[@REVISION] or hf://ORG/NAME/FILE.gguf[@REVISION]"
_SCHEME = re.compile(r"hf:/")
# Weights by preference: of several formats of the same numbers, only one is downloaded.
_WEIGHTS: Sequence[tuple[str, ...]] = (
    ("model.safetensors",),
    ("model.safetensors.index.json", "model-*-of-*.safetensors"),
    ("pytorch_model.bin",),
    ("pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"),
    ("consolidated.[0-9]*.pth",),
    ("*.safetensors",),
    ("*.pth", "*.pt"),
)
# Configs, tokenizers and chat templates; the last part of each pattern is matched in its folder.
_OTHERS = (
    *("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*/config.json"),
    "additional_chat_templates/*.jinja",
)
_NOT_NEEDED = ("*.index.json", "trainer_state.json", "adapter_*", "onnx/*", "openvino/*")

logger = logging.getLogger(__name__)


def local_path(path: str | Path) -> Path:
    """Returns a path; of an address, the folder or the file it is downloaded to.

    Addresses are `hf://org/name[@revision]`, `hf://org/name/file.gguf[@revision]`, and `gs://` and
    `s3://` with a bucket.

    Raises:
        UserError: the address is malformed, or it is no path at all.
        MissingPackageError: huggingface_hub is not installed.
        CheckpointError: there is no such model, revision or file, it is private, or the hub cannot
            be reached and the model is not in the cache.
    """
    try:
        text = os.fspath(path)
    except TypeError:
        raise UserError(
            f"a {type(path).__name__} is not a path; modules of PyTorch and state dicts in memory "
            "are taken by from_torch and, with rules for any JAX model, by load_into"
        ) from None
    if _SCHEME.match(text) is None:
        return download(path) if is_remote(text) else Path(path)
    address = _ADDRESS.fullmatch(text)
    if address is None:
        raise UserError(f"{text} is not an address on the hub: write {_FORMS}")
    return _download(*address.groups())


def needed_files(names: Sequence[str]) -> list[str]:
    """Returns the files of a repository to download: one format of the weights, and small files."""
    weights = next((found for kind in _WEIGHTS if (found := _matching(names, kind))), [])
    others = [name for name in _matching(names, _OTHERS) if not _matching([name], _NOT_NEEDED)]
    return list(dict.fromkeys([*weights, *others]))


def _matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    return [
        name
        for name in names
        for pattern in patterns
        if fnmatchcase(name, pattern) and name.count("/") == pattern.count("/")
    ]


def _files_to_load(repository: str, names: Sequence[str], file: str | None) -> list[str]:
    """Returns the files to download: what a model needs, or the GGUF file that is asked for.

    Raises:
        CheckpointError: there is no such file, or there are only GGUF files to choose from.
    """
    models = [name for name in names if name.endswith(_GGUF)]
    if file is not None and file not in models:
        meant = did_you_mean(file, models)
        raise CheckpointError(f"hf://{repository} has no {file}{meant}; {_choice(models)}")
    needed = [file] if file is not None else needed_files(names)
    if file is None and models and not any(_matching(needed, kind) for kind in _WEIGHTS):
        raise CheckpointError(
            f"hf://{repository} has GGUF files only: name one, as in "
            f"hf://{repository}/{models[0]}; {_choice(models)}"
        )
    return needed or ["config.json"]


def _choice(models: Sequence[str]) -> str:
    return f"its GGUF files: {', '.join(listed(models, str)) or 'none'}"


def _download(repository: str, file: str | None, revision: str | None) -> Path:
    """Downloads what is needed of a repository, or finds it in the cache; returns its place."""
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise MissingPackageError(
            f"hf://{repository} needs huggingface_hub: pip install 'jaxllm[hub]'"
        ) from None

    def fetch() -> str:
        info = huggingface_hub.HfApi().model_info(repository, revision=revision)
        names = [str(PurePosixPath(one.rfilename)) for one in info.siblings or ()]
        wanted = _files_to_load(repository, names, file)
        return huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=wanted
        )

    def find() -> str:
        return huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            allow_patterns=[file or "config.json"],
            local_files_only=True,
        )

    folder = Path(_explained(fetch, find, repository, revision))
    return folder if file is None else folder / file


def _explained(
    fetch: Callable[[], str], find: Callable[[], str], repository: str, revision: str | None
) -> str:
    """Returns what `fetch` or, without a connection, `find` returns.

    Raises CheckpointError with what to do, in one line.
    """
    from huggingface_hub import constants, errors

    name = f"hf://{repository}" + (f"@{revision}" if revision else "")
    try:
        return fetch()
    except errors.HFValidationError:
        raise UserError(f"{name} is not a name of a model: write hf://ORG/NAME") from None
    except errors.GatedRepoError:
        page = f"{constants.ENDPOINT}/{repository}"
        reason = f"is gated: accept its terms at {page}, then log in with `hf auth login`"
    except errors.RevisionNotFoundError:
        reason = f"does not exist: the model has no revision {revision!r}"
    except errors.RepositoryNotFoundError:
        reason = (
            f"does not exist on {constants.ENDPOINT}, or is private: check the name; for a private "
            "model log in with `hf auth login`, or set HF_TOKEN"
        )
    except Exception as error:
        if not _is_of_network(error):
            raise
        return _find_in_cache(find, name, error, constants.ENDPOINT)
    raise CheckpointError(f"{name} {reason}")


def _find_in_cache(find: Callable[[], str], name: str, error: Exception, endpoint: Any) -> str:
    from huggingface_hub import errors

    try:
        found = find()
    except errors.LocalEntryNotFoundError:
        raise CheckpointError(
            f"{name} is not in the cache, and {endpoint} cannot be reached "
            f"({first_line(error):.200}): check the connection, or give a folder with the files"
        ) from None
    logger.warning("%s: taken from the cache, since %s cannot be reached", name, endpoint)
    return found


def _is_of_network(error: Exception) -> bool:
    """Whether an error says that the hub cannot be reached, or does not answer as it should."""
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or package in ("httpx", "httpx2", "requests")
