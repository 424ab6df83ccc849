"""Special tokens that the files of a folder name: end and beginning of a sequence, padding."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxllm.errors import CheckpointError, UserError
from jaxllm.untrusted.json_objects import parse_json
from jaxllm.untrusted.regular_files import is_named, read_bytes

TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
GENERATION_CONFIG = "generation_config.json"
MODEL_CONFIG = "config.json"


ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def named_texts(folder: Path) -> dict[str, str]:
    """Returns the texts of the special tokens that the tokenizer's files name, by `ROLES`.

    Raises UserError if one is not a text.
    """
    found: dict[str, str] = {}
    for file in (folder / TOKENIZER_CONFIG, folder / SPECIAL_TOKENS):
        content = read_json(file)
        for role in ROLES:
            given = content.get(f"{role}_token")
            text = given.get("content") if isinstance(given, dict) else given  # or an AddedToken
            if given is not None and not is_unicode(text):
                raise UserError(
                    f"{file}: {role}_token is {given!r}; it must be a text, or an object with a "
                    "text as its content"
                )
            if text is not None:
                found.setdefault(role, text)
    return found


def is_unicode(text: object) -> bool:
    """Whether this is a text without lone surrogates, which no tokenizer takes."""
    return isinstance(text, str) and not any(
        "\ud800" <= character <= "\udfff" for character in text
    )


def find_eos_ids(folder: Path, vocab_size: int) -> tuple[int, ...]:
    """Returns the tokens that end a generated text, as transformers finds them; () if none.

    `generation_config.json` has them if it exists, as a list if there are several, such as the ends
    of a text and of a turn; otherwise the model's config.

    Raises UserError for an id outside the vocabulary.
    """
    files = (folder / GENERATION_CONFIG, folder / MODEL_CONFIG)
    return next((ids for file in files if (ids := read_ids(file, "eos_token_id", vocab_size))), ())


def read_ids(file: Path, name: str, vocab_size: int) -> tuple[int, ...]:
    """Returns the token id in a field of a JSON file, or the ids of a list; () without any.

    Raises UserError for what is not an id of the vocabulary.
    """
    given = read_json(file).get(name)
    if given is None:
        return ()
    ids = list(_items(given))
    if not ids or not all(type(token) is int and 0 <= token < vocab_size for token in ids):
        raise UserError(
            f"{file}: {name} is {given!r}; it must be a token id from 0 to {vocab_size - 1}, or a "
            "list of such ids"
        )
    return tuple(ids)


def _items(given: Any) -> Iterator[Any]:
    yield from given if isinstance(given, list) else [given]


def read_json(file: Path) -> dict[str, Any]:
    """Returns the object in a JSON file, or {} without one. Raises UserError for other content."""
    if not is_named(file):
        return {}
    try:
        return parse_json(read_bytes(file))
    except CheckpointError as error:
        raise UserError(f"{file}: {error}") from None
