"""The tokenizer, the chat template and the end token of a GGUF file, written as files."""

import atexit
import contextlib
import functools
import importlib.util
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from jaxllm.errors import MissingPackageError, UserError

from .special_tokens import GENERATION_CONFIG

SUFFIX = ".gguf"
NEEDED = ("transformers", "torch", "gguf")


def companion_folder(path: Path) -> Path:
    """Returns the folder with the files of a checkpoint that are not weights.

    That is the checkpoint itself, unless it is a GGUF file: what it holds is then written to a
    temporary folder, as transformers does, which exists until the process ends.

    Raises:
        MissingPackageError: transformers, PyTorch or gguf, which read the file, is not installed.
        UserError: transformers cannot read the tokenizer in the file.
    """
    if path.suffix != SUFFIX or not path.is_file():
        return path
    return _unpack(path.resolve(), path.stat().st_mtime_ns)


@functools.cache
def _unpack(file: Path, modified: int) -> Path:  # `modified`: a file that changed is read again
    missing = [package for package in NEEDED if importlib.util.find_spec(package) is None]
    if missing:
        raise MissingPackageError(
            f"{file}: to read its tokenizer, {' and '.join(missing)} must be installed: "
            "pip install 'jaxllm[torch,gguf]'; or give another tokenizer"
        )
    from transformers import AutoTokenizer

    folder = Path(tempfile.mkdtemp(prefix="jaxllm-gguf-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            tokenizer: Any = AutoTokenizer.from_pretrained(
                file.parent, gguf_file=file.name, local_files_only=True, trust_remote_code=False
            )
            tokenizer.save_pretrained(folder)
    except Exception as error:  # of any class, from parsers of damaged files
        said = " ".join(str(error).split())[:300].rstrip(".")
        raise UserError(f"{file}: transformers cannot read its tokenizer: {said}") from None
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    given = {name: token for name, token in ids.items() if token is not None}
    (folder / GENERATION_CONFIG).write_text(json.dumps(given, indent=2) + "\n")
    return folder
