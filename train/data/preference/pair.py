"""A preference: a prompt with an answer that was chosen and one that was rejected, as tokens."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxllm.errors import UserError
from jaxllm.tokenization import Tokenizer
from jaxllm.tokenization.chat import Chat
from jaxllm.train.data.conversations import parse_messages, parse_tools
from jaxllm.train.data.text import utf8

COLUMNS = ("prompt", "chosen", "rejected", "tools")
ANSWERS = ("chosen", "rejected")
Text = str | list[dict[str, Any]]  # a text, or messages


class Preference(NamedTuple):
    """A prompt and two answers: three texts, or three lists of messages."""

    prompt: Text
    chosen: Text
    rejected: Text
    tools: Any = None  # that the assistant may call

    def content(self) -> bytes:
        """Returns the prompt as bytes: preferences with equal ones are held out together."""
        return json.dumps([self.prompt, self.tools], sort_keys=True).encode()


class EncodedPair(NamedTuple):
    """Two sequences that begin with the same prompt."""

    chosen: list[int]
    rejected: list[int]
    prompt: int  # how many of the tokens are the prompt's, which are no targets


def parse_preference(record: object) -> Preference:
    """Reads a preference from a record.

    Args:
        record: an object with `chosen` and `rejected`, two texts or two lists of messages, and
            perhaps `prompt` and `tools`. Without `prompt`, it is what both begin with.

    Raises:
        UserError: it is no such object.
    """
    if not isinstance(record, Mapping):
        raise UserError("expected a JSON object with 'chosen' and 'rejected'")
    given = {name: record[name] for name in COLUMNS if record.get(name) is not None}
    if missing := [repr(name) for name in ANSWERS if name not in given]:
        raise UserError(
            f"no preference: {' and '.join(missing)} missing among its keys "
            f"{', '.join(map(str, record)) or 'none'}"
        )
    texts = {name: value for name, value in given.items() if name != "tools"}
    if all(isinstance(value, str) for value in texts.values()):
        return _of_texts({name: utf8(text) for name, text in texts.items()})
    kinds = ", ".join(f"{name!r} {_kind(value)}" for name, value in texts.items())
    if not all(isinstance(value, list) for value in texts.values()):
        raise UserError(f"expected texts or lists of messages alike; {kinds}")
    return _of_messages(
        {name: parse_messages(value, name) for name, value in texts.items()}, parse_tools(record)
    )


def _kind(value: object) -> str:
    names = {"str": "is a text", "list": "is a list"}
    kind = type(value).__name__
    return names.get(kind, f"is of type {kind}")


def _of_texts(texts: dict[str, str]) -> Preference:
    if "prompt" not in texts:
        chosen, rejected = (texts[name] for name in ANSWERS)
        shared = chosen[: shared_length(chosen, rejected)]
        # A space belongs to the word behind it, as in most vocabularies.
        shared = shared.removesuffix(" ")
        texts = {"prompt": shared} | {name: texts[name][len(shared) :] for name in ANSWERS}
    return Preference(texts["prompt"], texts["chosen"], texts["rejected"])


def _of_messages(lists: dict[str, list[dict[str, Any]]], tools: Any) -> Preference:
    if "prompt" not in lists:
        chosen, rejected = (lists[name] for name in ANSWERS)
        shared = shared_length(chosen, rejected)
        lists = {"prompt": chosen[:shared]} | {name: lists[name][shared:] for name in ANSWERS}
    if not lists["prompt"]:
        raise UserError("no prompt: 'chosen' and 'rejected' begin with different messages")
    for name in ANSWERS:
        if not lists[name]:
            raise UserError(f"{name!r} has no message behind the prompt")
    return Preference(lists["prompt"], lists["chosen"], lists["rejected"], tools)


def shared_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Returns how many items two sequences begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def encode_preference(
    preference: Preference, tokenizer: Tokenizer, chat: Chat | None, most: int
) -> EncodedPair:
    """Encodes both answers behind their prompt, as TRL does.

    The targets are the tokens from where the prompt alone, and the prompt with either answer,
    differ. Texts end with the end-of-sequence token; messages as the template says.

    Args:
        preference: the prompt and its answers.
        tokenizer: the model's.
        chat: the chat template; None if there is none, which messages need.
        most: the tokens that a sequence may have.

    Raises:
        UserError: a sequence is too long or has no target, or the template fails.
    """
    if isinstance(preference.prompt, str):
        prompt = tokenizer.encode_prompt(preference.prompt, trusted=False)
        both = [tokenizer.encode_document(f"{preference.prompt}{a}") for a in preference[1:3]]
    else:
        if chat is None:
            raise UserError(
                "the tokenizer has no chat template for messages; data.template names one"
            )
        tools = preference.tools
        prompt = tokenizer.encode_chat(chat.render(preference.prompt, tools=tools, answering=True))
        both = [
            tokenizer.encode_chat(chat.render([*preference.prompt, *answer], tools=tools))
            for answer in preference[1:3]
        ]
    shared = min(shared_length(prompt, ids) for ids in both)
    if (longest := max(map(len, both))) > most:
        raise UserError(
            f"a sequence of {longest} tokens, prompt included, does not fit in seq_len={most - 1}"
        )
    if min(map(len, both)) <= max(shared, 1):
        raise UserError("an answer has no token behind the prompt")
    return EncodedPair(both[0], both[1], shared)
