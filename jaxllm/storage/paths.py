"""Paths on this machine and on object stores, `gs://BUCKET/...` and `s3://BUCKET/...`.

Those on object stores are `etils.epath.Path`, which has the methods of `pathlib.Path` and which
Orbax takes as well; fsspec does the work through gcsfs or s3fs.
"""

import os
import re
from pathlib import Path
from typing import Any

from jaxllm.errors import MissingPackageError, UserError

# The package of each kind of address, and the extra of jaxllm that installs it.
PACKAGES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
# Options of TensorStore's driver for S3, and the variables that AWS's tools take them from.
_S3_VARIABLES = {
    "endpoint": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "aws_region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
}
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+)://?(?=[^/])")  # Path turns two slashes into one
_NOT_UTF8 = re.compile("[\ud800-\udfff]")  # what Python makes of such bytes in names
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,62}(/|$)")


def is_remote(path: object) -> bool:
    """Whether a path is an address on an object store, of a kind that is known or not."""
    found = _ADDRESS.match(str(path))
    return found is not None and found[1] != "hf"  # the hub has its own module


def open_path(path: str | os.PathLike[str]) -> Any:
    """Returns a path: of this machine, or on an object store as others see it now.

    Raises:
        UserError: the address is of another kind, or has no bucket.
        MissingPackageError: the package for this kind of address is not installed.
    """
    if not is_remote(path):
        return Path(path)
    from etils import epath

    address = to_address(path)
    found = epath.Path(address)
    file_system(address).invalidate_cache()  # listings are kept, also of what others write
    return found


def absolute_path(path: str | os.PathLike[str]) -> Any:
    """Returns `open_path(path)`, made absolute; on this machine, links are resolved as well."""
    found = open_path(path)
    return found if is_remote(path) else found.resolve()


def to_address(path: str | os.PathLike[str]) -> str:
    """Returns an address with both slashes; raises UserError if its kind is not known."""
    text = str(path)  # which of an epath.Path has the address
    found = _ADDRESS.match(text)
    kind = "" if found is None else found[1]
    if found is None or kind not in PACKAGES:
        known = " and ".join(f"{kind}://" for kind in PACKAGES)
        raise UserError(f"{text}: addresses are read from {known}, not {kind}://")
    rest = text[found.end() :]
    if _BUCKET.match(rest) is None:
        raise UserError(f"{text} has no bucket: write {kind}://BUCKET/FOLDER")
    return f"{kind}://{rest}"


def file_system(address: str) -> Any:
    """Returns the fsspec file system of an address, the one that its paths use.

    Raises:
        MissingPackageError: its package is not installed.
    """
    from etils.epath import backend

    package, extra = PACKAGES[address.partition("://")[0]]
    try:
        return backend.fsspec_backend.fs(address)
    except ImportError:
        raise MissingPackageError(
            f"{address} needs {package}, which is not installed: pip install 'jaxllm[{extra}]'"
        ) from None


def check_output(path: str | os.PathLike[str]) -> Path:
    """Returns a path to write to on this machine.

    Raises:
        UserError: it is an address on an object store; says what to do.
    """
    if not is_remote(path):
        return Path(path)
    address = to_address(path)
    copy = {"gs": "gcloud storage cp -r", "s3": "aws s3 cp --recursive"}[address[:2]]
    raise UserError(
        f"{address}: this is written to a folder of this machine only; then `{copy} FOLDER "
        f"{address}`"
    )


def check_is_utf8(path: object, reader: str = "Orbax") -> None:
    """Raises UserError for a path that a library cannot take: Orbax, or another that is named."""
    if _NOT_UTF8.search(str(path)):
        raise UserError(f"{path} is not UTF-8, as {reader} needs paths to be: rename it")


def kvstore(path: Any) -> dict[str, Any]:
    """Returns the TensorStore spec of a folder, on this machine or on an object store."""
    check_is_utf8(path)
    text = str(path)  # which of an epath.Path has the address
    if not is_remote(text):
        return {"driver": "file", "path": f"{text}/"}
    kind, _, rest = to_address(text).partition("://")
    bucket, _, inner = rest.partition("/")
    found = {"driver": {"gs": "gcs"}.get(kind, kind), "bucket": bucket, "path": f"{inner}/"}
    return found | (_s3_options() if kind == "s3" else {})


def _s3_options() -> dict[str, Any]:
    """Returns what TensorStore does not read from the environment itself, as boto3 does."""
    options: dict[str, Any] = {}
    for name, variables in _S3_VARIABLES.items():
        if values := [os.environ[variable] for variable in variables if os.environ.get(variable)]:
            options[name] = values[0]
    if "endpoint" in options:
        options.setdefault("aws_region", "us-east-1")
    if os.environ.get("AWS_ACCESS_KEY_ID"):  # otherwise it first says which files it looks for
        options["aws_credentials"] = {"type": "environment"}
    return options
