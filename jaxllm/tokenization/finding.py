"""Finds the tokenizer that belongs to a model, and checks that it fits."""

from collections.abc import Iterable
from pathlib import Path

from jaxllm.config import Config
from jaxllm.errors import MissingFileError, UserError
from jaxllm.hub import local_path
from jaxllm.untrusted.regular_files import is_named

from .converted import is_other_tokenizer, read_other_tokenizer
from .file_tokenizer import FILE, FileTokenizer
from .gguf_companions import SUFFIX, companion_folder
from .tokenizer import ByteTokenizer, Tokenizer

BYTES = "bytes"  # the name of the byte tokenizer


def load_tokenizer(path: str | Path | None, *, eos: str | None = None) -> Tokenizer:
    """Loads a tokenizer.

    Args:
        path: a `tokenizer.json`, a folder that has one or other files of a tokenizer, a GGUF file,
            or "bytes". None is the same as "bytes".
        eos: the text of the end-of-sequence token, if its folder does not name it.

    Raises:
        MissingFileError: the path does not exist.
        MissingPackageError: a package that reads these files is not installed.
        UserError: the files are not a tokenizer, or a special token is not in its vocabulary.
    """
    if path is None or str(path) == BYTES:
        return ByteTokenizer()
    place = companion_folder(local_path(path))
    if not place.exists():
        raise MissingFileError(f"the tokenizer file {place} does not exist")
    if place.is_file() and place.suffix != ".json":  # such as tokenizer.model
        place = place.parent
    if place.is_dir() and not is_named(place / FILE) and is_other_tokenizer(place):
        return read_other_tokenizer(place, eos=eos)
    return FileTokenizer.read(place, eos=eos)


def find_tokenizer(folders: Iterable[Path]) -> Path | None:
    """Returns the first of the folders or GGUF files that has a tokenizer, or None."""
    return next(filter(_has_tokenizer, folders), None)


def _has_tokenizer(place: Path) -> bool:
    if not place.is_dir():
        return place.suffix == SUFFIX and place.is_file()
    return is_named(place / FILE) or is_other_tokenizer(place)


def check_tokens(tokenizer: Tokenizer, config: Config, *, is_chosen: bool, option: str) -> None:
    """Checks that a tokenizer fits a model.

    Args:
        tokenizer: the tokenizer.
        config: the model's config.
        is_chosen: whether the user chose this tokenizer, or the model is new. If not, a model whose
            vocabulary is not that of bytes is not fed bytes.
        option: how to choose another, such as "--tokenizer".

    Raises:
        UserError: the tokenizer has more tokens than the model, or its tokens are bytes although
            the model's are something else.
    """
    for name in ("vocab_size", "source_vocab_size"):
        known = getattr(config, name, None)
        if known is not None and tokenizer.vocab_size > known:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} tokens; the model's {name} is {known}: "
                f"give the model's own with {option}"
            )
        is_other = known not in (None, ByteTokenizer.vocab_size)
        if not is_chosen and is_other and isinstance(tokenizer, ByteTokenizer):
            raise UserError(
                f"the model has no tokenizer beside it, and its {name} of {known} tokens is not "
                f"that of bytes: give its tokenizer with {option}, or {BYTES!r} if its tokens are "
                "bytes"
            )
