"""Ids of the tokens that begin, end and pad texts, for the configs that an export writes.

transformers takes a model type's defaults for ids that `config.json` leaves out, such as 1 and 2
for Llama, whatever the tokenizer. Exports therefore say them, and say null where nothing tells.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxllm.checkpoint_origin import Origin
from jaxllm.interop.families import Family
from jaxllm.tokenization.special_tokens import GENERATION_CONFIG

Json = dict[str, Any]

NAMES = ("bos_token_id", "eos_token_id", "pad_token_id")
TEXT_PART = "text_config"  # of models with an image encoder
# Numbers of fields in SentencePiece's model file, and the ids if a field is left out.
TRAINER_SPEC = 2
SENTENCEPIECE_IDS = {41: ("bos_token_id", 1), 42: ("eos_token_id", 2), 43: ("pad_token_id", -1)}


def add_special_tokens(config: Json, family: Family, origin: Origin | None) -> Json:
    """Returns a Hugging Face config with the ids of special tokens, null where they are unknown.

    A config of the origin's own family stays as it is.
    """
    if not _is_new(family, origin):
        return config
    if TEXT_PART in config:
        return config | {TEXT_PART: add_special_tokens(config[TEXT_PART], family, origin)}
    known = {} if origin is None else find_special_tokens(origin, config["vocab_size"])
    given = {name: config.get(name) for name in NAMES}
    return config | {name: known.get(name) if own is None else own for name, own in given.items()}


def generation_config(config: Json, family: Family, origin: Origin | None) -> dict[str, bytes]:
    """Returns `generation_config.json` by its name, unless the origin has one to be copied.

    Without the file, transformers takes the ids of `config.json`.
    """
    config = config.get(TEXT_PART, config)
    names = (*NAMES, "decoder_start_token_id")
    given = {name: config[name] for name in names if config.get(name) is not None}
    folders = [] if origin is None else origin.readable_folders
    has_own = any((folder / GENERATION_CONFIG).is_file() for folder in folders)
    if not _is_new(family, origin) or has_own or not given:
        return {}
    text = json.dumps({"_from_model_config": True, **given}, indent=2) + "\n"
    return {GENERATION_CONFIG: text.encode()}


def _is_new(family: Family, origin: Origin | None) -> bool:
    """Whether the config is a Hugging Face config that is not that of the origin, changed."""
    return family.format == "hf" and (origin is None or origin.family != family.name)


def find_special_tokens(origin: Origin, vocab_size: int) -> Json:
    """Returns the ids that the origin's files give, by name; the first file that has one decides.

    Args:
        origin: the origin.
        vocab_size: ids that are not below it are not taken.
    """
    found: Json = {}
    every = [json.loads(origin.config)]
    for folder in origin.readable_folders:
        every += [
            _read_json(folder / GENERATION_CONFIG),
            _tokenizer_ids(folder),
            _tokenizer_model_ids(folder / "tokenizer.model"),
        ]
    for ids in every:
        for name in NAMES:
            if _are_ids(ids.get(name), vocab_size):
                found.setdefault(name, ids[name])
    return found


def _are_ids(value: Any, vocab_size: int) -> bool:
    """Whether a value is an id, or a list of ids."""
    ids = value if isinstance(value, list) and value else [value]
    return all(type(token) is int and 0 <= token < vocab_size for token in ids)


def _tokenizer_ids(folder: Path) -> Json:
    """Returns the ids of the tokens that `tokenizer_config.json` or the older map names."""
    given = _read_json(folder / "special_tokens_map.json")
    given |= _read_json(folder / "tokenizer_config.json")
    try:
        ids = dict(_token_ids(folder, given))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):  # of another form
        return {}
    texts = {name: given.get(name.removesuffix("_id")) for name in NAMES}
    plain = {name: t.get("content") if isinstance(t, dict) else t for name, t in texts.items()}
    return {
        name: ids[text] for name, text in plain.items() if isinstance(text, str) and text in ids
    }


def _token_ids(folder: Path, settings: Json) -> Iterator[tuple[str, int]]:
    """Yields the tokens of a tokenizer's files with their ids."""
    tokenizer = _read_json(folder / "tokenizer.json")
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        yield from vocabulary.items()
    elif isinstance(vocabulary, list):  # Unigram: pieces with their scores, in the order of ids
        yield from ((piece[0], number) for number, piece in enumerate(vocabulary))
    for token in tokenizer.get("added_tokens") or ():
        yield token["content"], token["id"]
    for number, token in (settings.get("added_tokens_decoder") or {}).items():
        yield token["content"], int(number)


def _tokenizer_model_ids(path: Path) -> Json:
    """Returns the ids of a `tokenizer.model`: SentencePiece, or ranks as Llama 3 has them."""
    if not path.is_file():
        return {}
    data = path.read_bytes()
    lines = data.split()
    if len(lines) % 2 == 0 and all(line.isdigit() for line in lines[1::2]):
        # Meta numbers the special tokens after the ranks: begin of text, end of text, ...
        return {"bos_token_id": len(lines) // 2, "eos_token_id": len(lines) // 2 + 1}
    try:
        spec = next((value for field, value in _protobuf(data) if field == TRAINER_SPEC), b"")
        given = dict(_protobuf(spec)) if isinstance(spec, bytes) else {}
    except IndexError:
        return {}
    return {name: given.get(field, default) for field, (name, default) in SENTENCEPIECE_IDS.items()}


def _protobuf(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields the fields of a protobuf message: their number and value.

    Raises IndexError if the message is cut short or is none.
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value - (1 << 64) * (value >> 63)
            continue
        if kind not in (1, 2, 5):
            raise IndexError("not a protobuf message")
        length, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
        if at + length > len(data):
            raise IndexError("the message is cut short")
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Returns a number of variable length, and the offset after it."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128 or shift > 63:
            return value & ((1 << 64) - 1), at


def _read_json(path: Path) -> Json:
    """Returns a JSON object, or an empty one if the file has none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return dict(found) if isinstance(found, Mapping) else {}
