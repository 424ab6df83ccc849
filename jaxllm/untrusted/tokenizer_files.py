"""Tokenizers from files: checked before use, and stopped if a text takes them too long.

A `tokenizer.json` is a program. Replacements that follow each other multiply a text, a regular
expression may try exponentially many matches, and the library `tokenizers` ends in a panic, which
is no `Exception`, where its authors expected no error.
"""

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import tokenizers

from jaxllm.errors import CheckpointError, UserError

from .regular_files import read_bytes
from .substitutes import check_is_content

MAX_GROWTH = 200  # characters that a normalizer or a decoder may make of one; NFKC makes 18
MAX_ADDED = 10_000  # tokens and characters added to any text
MAX_WORD = 1000  # characters of a word that WordPiece may split; its time is the square
SECONDS, SECONDS_PER_CHARACTER = 4.0, 1e-4  # for a text, of both wall and CPU time
_POLL_SECONDS = 0.02

Result = TypeVar("Result")


def read_tokenizer(file: Path) -> tokenizers.Tokenizer:
    """Reads a `tokenizer.json`.

    Raises:
        UserError: the file is not a tokenizer, or multiplies texts.
        OSError: the file cannot be read.
    """
    content = read_bytes(file)
    try:
        check_is_content(file)
    except CheckpointError as error:
        raise UserError(*error.within(file)) from None
    tokenizer = _guarded(
        lambda: tokenizers.Tokenizer.from_buffer(content), f"{file} is not a tokenizer.json"
    )
    if problems := [*_problems(tokenizer)]:
        raise UserError("\n".join(f"{file}: {problem}" for problem in problems))
    return tokenizer


def encode(
    tokenizer: tokenizers.Tokenizer, text: str, place: object, *, special: bool
) -> tokenizers.Encoding:
    """Returns the ids of a text, and what is known about each.

    Args:
        tokenizer: what `read_tokenizer` returned.
        text: the text.
        place: the tokenizer's file, to be named in errors.
        special: whether to add the special tokens that the tokenizer adds.

    Raises:
        UserError: the tokenizer fails, or takes far more time than such a text needs.
    """
    # A batch, because Python cannot interrupt the encoding of a single text.
    batch = partial(tokenizer.encode_batch, [text], add_special_tokens=special)
    return _in_time(batch, len(text), place)[0]


def encode_batch(
    tokenizer: tokenizers.Tokenizer, texts: Sequence[str], place: object
) -> list[list[int]]:
    """Returns the ids of several texts, without special tokens, by all cores; see `encode`."""
    batch = partial(tokenizer.encode_batch_fast, texts, add_special_tokens=False)
    return [encoding.ids for encoding in _in_time(batch, sum(map(len, texts)), place)]


def decode(tokenizer: tokenizers.Tokenizer, ids: list[int], place: object) -> str:
    """Returns the text of ids, with special tokens; see `encode`."""
    batch = partial(tokenizer.decode_batch, [ids], skip_special_tokens=False)
    return _in_time(batch, len(ids), place)[0]


def _in_time(call: Callable[[], Result], size: int, place: object) -> Result:
    """Returns the result of a call, which runs in a thread that is given up if it takes too long.

    Raises UserError if it fails or is given up. `size` counts characters or tokens.
    """
    outcome: list[Callable[[], Result]] = []

    def work() -> None:
        try:
            result = _guarded(call, f"{place} fails for a text of {size} characters or tokens")
            outcome.append(lambda: result)
        except UserError as error:
            outcome.append(partial(_raise, error))

    thread = threading.Thread(target=work, daemon=True)
    started = time.monotonic(), time.process_time()
    thread.start()
    limit = SECONDS + size * SECONDS_PER_CHARACTER
    while not outcome:
        thread.join(_POLL_SECONDS)
        # Not the clock alone: the machine may be busy, or asleep.
        used = time.monotonic() - started[0], time.process_time() - started[1]
        if not outcome and min(used) > limit:
            raise UserError(
                f"{place} has taken more than {limit:.0f} s for a text of {size} characters or "
                "tokens: a regular expression in it, or its model, does not end in time"
            )
    return outcome[0]()


def _raise(error: UserError) -> Any:
    raise error


def _guarded(call: Callable[[], Result], what: str) -> Result:
    """Returns the result of a call. Raises UserError for every error and panic of the library."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic is no Exception
        raise UserError(f"{what}: {error}") from None


def _problems(tokenizer: tokenizers.Tokenizer) -> Iterator[str]:
    """Yields what makes a tokenizer multiply texts, or take the square of their length."""
    for part in ("normalizer", "decoder", "post_processor"):
        steps = [*_steps(_described(getattr(tokenizer, part)))]
        if sum(math.log(_growth(step) or 1) for step in steps) > math.log(MAX_GROWTH):
            yield f"{part} may make more than {MAX_GROWTH} characters or tokens of one"
        added = sum(map(_added, steps))
        if added > MAX_ADDED:
            yield f"{part} adds {added} characters or tokens to any text; at most {MAX_ADDED}"
    model = tokenizer.model
    if isinstance(model, tokenizers.models.WordPiece) and model.max_input_chars_per_word > MAX_WORD:
        found = model.max_input_chars_per_word
        yield f"model.max_input_chars_per_word is {found}; at most {MAX_WORD} is read"


def _described(part: Any) -> Any:
    """Returns a part of a tokenizer as it stands in its file."""
    return None if part is None else json.loads(part.__getstate__())


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """Yields every step of a part, those of sequences in their order."""
    if part is None:
        return
    sequences = [part[key] for key in ("normalizers", "decoders", "processors") if key in part]
    if not sequences:
        yield part
    for sequence in sequences:
        for one in sequence:
            yield from _steps(one)


def _growth(step: dict[str, Any]) -> float:
    """Returns how many characters a step may make of one."""
    match step:
        case {"type": "Replace", "pattern": {"String": str(text)}, "content": str(content)}:
            return max(1.0, len(content) / len(text)) if text else 1 + len(content)
        case {"type": "Replace", "content": str(content)}:
            return 1 + len(content)
        case {"type": "Precompiled"}:  # its table is not read here; that of NFKC makes 18
            return 18.0
        case {"type": "TemplateProcessing", "single": list(pieces)}:
            return float(sum("Sequence" in piece for piece in pieces))
    return 1.0


def _added(step: dict[str, Any]) -> int:
    """Returns how many characters or tokens a step adds to any text."""
    match step:
        case {"type": "Prepend", "prepend": str(text)}:
            return len(text)
        case {"type": "TemplateProcessing", "single": list(pieces), "special_tokens": dict(known)}:
            names = [piece["SpecialToken"]["id"] for piece in pieces if "SpecialToken" in piece]
            return sum(len(known[name]["ids"]) for name in names)
    return 0
