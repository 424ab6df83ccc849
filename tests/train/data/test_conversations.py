"""Conversations in each published form, and records that are none."""

import pytest

from jaxllm.errors import UserError
from jaxllm.train.data.conversations import parse_conversation

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
TOOLS = [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize(
    ("record", "messages", "tools", "prompt"),
    [
        ({"messages": [USER, ANSWER], "id": 3}, [USER, ANSWER], None, 0),
        ({"messages": [USER, ANSWER], "tools": TOOLS}, [USER, ANSWER], TOOLS, 0),
        (  # as tables hold them
            {
                "messages": [{**USER, "tool_calls": None}, {**ANSWER, "content": None}, ANSWER],
                "conversations": None,
                "tools": '[{"type": "function"}]',
            },
            None,
            None,
            None,
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "hi"},
                    {"from": "gpt", "value": "hello"},
                    {"from": "observation", "value": "7"},
                ],
                "system": "be kind",
            },
            [
                {"role": "system", "content": "be kind"},
                *(USER, ANSWER, {"role": "tool", "content": "7"}),
            ],
            None,
            0,
        ),
        (
            {"instruction": "hi", "input": "you", "output": "hello", "history": [["a", "b"]]},
            [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": "hi\nyou"},
                ANSWER,
            ],
            None,
            0,
        ),
        ({"instruction": "hi", "input": "", "output": "hello"}, [USER, ANSWER], None, 0),
        ({"prompt": [USER], "completion": [ANSWER]}, [USER, ANSWER], None, 1),
    ],
    ids=range(7),
)
def test_each_form_is_read_as_messages(record, messages, tools, prompt):
    if messages is None:
        with pytest.raises(UserError, match="message 2 of 'messages' has no 'content'"):
            parse_conversation(record)
        return
    found = parse_conversation(record)
    assert (found.messages, found.tools, found.prompt) == (messages, tools, prompt)


def test_empty_fields_of_tables_are_left_out():
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1, "b": None}}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call], "name": None}
    found = parse_conversation({"messages": [USER, turn], "tools": ""})
    assert found.messages[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}],
    }


def test_two_texts_are_plain():
    assert parse_conversation({"prompt": "a", "completion": "b"}).plain == ("a", "b")


def test_a_form_is_chosen_where_a_record_has_several():
    record = {"messages": [USER, ANSWER], "prompt": "a", "completion": "b"}
    assert parse_conversation(record).messages == [USER, ANSWER]
    assert parse_conversation(record, "prompt_completion").plain == ("a", "b")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([USER], "expected a JSON object"),
        ({"text": "hi"}, "expected 'messages' or 'conversations' or .*, found 'text'"),
        ({"messages": "hi"}, "'messages' is not a list of objects"),
        ({"messages": [{"content": "hi"}]}, "message 1 of 'messages' has no 'role'"),
        ({"messages": [USER, {**ANSWER, "content": 3}]}, "content of message 2 .* is not a text"),
        ({"messages": [USER]}, "no turn of the assistant"),
        ({"prompt": [USER, ANSWER], "completion": []}, "no turn of the assistant"),
        ({"conversations": [{"from": "me", "value": "x"}]}, "message 1 is from 'me'"),
        ({"messages": [USER, ANSWER], "tools": "{"}, "'tools' is no JSON"),
        ({"instruction": 3, "output": "x"}, "'instruction' or 'input' is not a text"),
    ],
    ids=range(10),
)
def test_other_records_say_what_is_missing(record, message):
    with pytest.raises(UserError, match=message):
        parse_conversation(record)
    with pytest.raises(UserError, match="expected 'messages', found 'prompt'"):
        parse_conversation({"prompt": "a"}, "messages")
