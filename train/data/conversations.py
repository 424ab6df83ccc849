"""Conversations from records: the four forms in which datasets of chats are published."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

from jaxllm.errors import UserError

Form = Literal["messages", "sharegpt", "alpaca", "prompt_completion"]

# Who speaks, by the names in ShareGPT's `from`.
_SPEAKERS = {
    **{"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"},
    **{"chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "model": "assistant"},
    **{"system": "system", "tool": "tool", "observation": "tool", "function_call": "assistant"},
}


class Conversation(NamedTuple):
    """Messages and the tools that the assistant may call; or a plain text with its completion."""

    messages: list[dict[str, Any]]
    tools: Any = None
    # How many of the messages are a prompt, of which no turn is learned.
    prompt: int = 0
    plain: tuple[str, str] | None = None  # a prompt and its completion, without any template

    def content(self) -> bytes:
        """Returns a text that is the same for equal conversations."""
        return json.dumps(self, sort_keys=True).encode()


def parse_conversation(record: object, form: Form | None = None) -> Conversation:
    """Reads a conversation from a record.

    Args:
        record: an object: `messages` as OpenAI has them, ShareGPT's `conversations`, Alpaca's
            `instruction`, `input` and `output`, or `prompt` and `completion`, two texts or two
            lists of messages.
        form: which of these it is; None: the first whose keys it has.

    Raises:
        UserError: it is none of them, or has no turn of the assistant.
    """
    if not isinstance(record, Mapping):
        raise UserError("expected a JSON object with a conversation")
    present = {key for key, value in record.items() if value is not None}
    known = [form] if form else [name for name in get_args(Form) if _FORMS[name][0] <= present]
    if not known or not _FORMS[known[0]][0] <= present:
        wanted = [form] if form else get_args(Form)
        listed = " or ".join(" and ".join(map(repr, sorted(_FORMS[name][0]))) for name in wanted)
        raise UserError(
            f"no conversation: expected {listed}, found {', '.join(map(repr, record)) or 'nothing'}"
        )
    conversation = _FORMS[known[0]][1](record)
    learned = conversation.messages[conversation.prompt :]
    if conversation.plain is None and not any(turn["role"] == "assistant" for turn in learned):
        raise UserError("no turn of the assistant, from which to learn")
    return conversation


def _messages(record: Mapping[str, Any]) -> Conversation:
    return Conversation(parse_messages(record["messages"], "messages"), parse_tools(record))


def _sharegpt(record: Mapping[str, Any]) -> Conversation:
    turns = record["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise UserError("'conversations' is not a list of objects")
    messages = []
    for number, turn in enumerate(turns, start=1):
        speaker = turn.get("from", turn.get("role"))
        if speaker not in _SPEAKERS:
            raise UserError(
                f"message {number} is from {speaker!r}, who is none of {', '.join(_SPEAKERS)}"
            )
        messages.append(
            {"role": _SPEAKERS[speaker], "content": turn.get("value", turn.get("content"))}
        )
    return Conversation(
        parse_messages([*_system(record), *messages], "conversations"), parse_tools(record)
    )


def _alpaca(record: Mapping[str, Any]) -> Conversation:
    asked = [record["instruction"], record.get("input") or ""]
    if not all(isinstance(text, str) for text in asked):
        raise UserError("'instruction' or 'input' is not a text")
    earlier = [
        {"role": role, "content": text}
        for pair in record.get("history") or ()
        for role, text in zip(("user", "assistant"), pair, strict=False)
    ]
    last = [
        {"role": "user", "content": "\n".join(filter(None, asked))},
        {"role": "assistant", "content": record["output"]},
    ]
    return Conversation(parse_messages([*_system(record), *earlier, *last], "history"))


def _prompt_completion(record: Mapping[str, Any]) -> Conversation:
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return Conversation([], plain=(prompt, completion))
    asked, answered = parse_messages(prompt, "prompt"), parse_messages(completion, "completion")
    return Conversation([*asked, *answered], parse_tools(record), prompt=len(asked))


def _system(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    text = record.get("system")
    return [{"role": "system", "content": text}] if text else []


def parse_tools(record: Mapping[str, Any]) -> Any:
    """Returns the tools of a record, which tables hold as JSON."""
    tools = record.get("tools")
    if not isinstance(tools, str):
        return tools or None
    try:
        return json.loads(tools) or None if tools.strip() else None
    except ValueError as error:
        raise UserError(f"'tools' is no JSON: {error}") from None


def parse_messages(given: object, key: str) -> list[dict[str, Any]]:
    """Returns messages without empty fields, which tables add. Raises UserError for others."""
    if not isinstance(given, list) or not all(isinstance(turn, Mapping) for turn in given):
        raise UserError(f"{key!r} is not a list of objects")
    messages = [
        {name: _filled(value) for name, value in turn.items() if value is not None}
        for turn in given
    ]
    for number, message in enumerate(messages, start=1):
        if not isinstance(message.get("role"), str):
            raise UserError(f"message {number} of {key!r} has no 'role'")
        if "content" not in message and "tool_calls" not in message:
            raise UserError(f"message {number} of {key!r} has no 'content'")
        message.setdefault("content", "")
        if not isinstance(message["content"], str | list):
            raise UserError(f"the content of message {number} of {key!r} is not a text")
    return messages


def _filled(value: Any) -> Any:
    """Returns a value of a table without the fields that other rows of the table have."""
    if isinstance(value, Mapping):
        return {name: _filled(one) for name, one in value.items() if one is not None}
    return [_filled(one) for one in value] if isinstance(value, list) else value


_FORMS: dict[str, tuple[set[str], Callable[[Mapping[str, Any]], Conversation]]] = {
    "messages": ({"messages"}, _messages),
    "sharegpt": ({"conversations"}, _sharegpt),
    "alpaca": ({"instruction", "output"}, _alpaca),
    "prompt_completion": ({"prompt", "completion"}, _prompt_completion),
}
# What a table is read for.
COLUMNS = (
    *("messages", "conversations", "instruction", "output", "prompt", "completion"),
    *("input", "system", "history", "tools"),
)
