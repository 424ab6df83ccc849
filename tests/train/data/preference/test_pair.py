"""Preferences from records, and their tokens."""

import pytest

from jaxllm.errors import UserError
from jaxllm.tokenization import ByteTokenizer
from jaxllm.tokenization.chat import Chat
from jaxllm.train.data.preference.pair import Preference, encode_preference, parse_preference


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_the_prompt_is_given_or_what_both_answers_begin_with():
    asked, good, bad = message("user", "a?"), message("assistant", "b"), message("assistant", "c")
    expected = Preference([asked], [good], [bad])
    given = {"prompt": [asked], "chosen": [good], "rejected": [bad]}
    assert parse_preference(given) == expected
    assert parse_preference({"chosen": [asked, good], "rejected": [asked, bad]}) == expected
    assert parse_preference({"prompt": "a", "chosen": " b", "rejected": " c"}) == Preference(
        "a", " b", " c"
    )
    found = parse_preference({"chosen": "the cat sat", "rejected": "the cat ran"})
    assert found == Preference("the cat", " sat", " ran")
    assert parse_preference({**given, "tools": '[{"name": "f"}]'}).tools == [{"name": "f"}]


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ([], "expected a JSON object"),
        ({"chosen": "a", "prompt": "b"}, "'rejected' missing among its keys chosen, prompt"),
        ({"chosen": "a", "rejected": [message("user", "x")]}, "'rejected' is a list"),
        ({"chosen": 1, "rejected": 2}, "'chosen' is of type int"),
        ({"chosen": [message("a", "b")], "rejected": [message("c", "d")]}, "no prompt"),
        (
            {"chosen": [message("a", "b")], "rejected": [message("a", "b"), message("c", "d")]},
            "'chosen' has no message behind the prompt",
        ),
        ({"chosen": ["x"], "rejected": ["y"]}, "'chosen' is not a list of objects"),
        ({"chosen": "\ud800", "rejected": "y"}, "surrogate"),
    ],
)
def test_what_is_no_preference_is_refused(record, problem):
    with pytest.raises(UserError, match=problem):
        parse_preference(record)


def test_targets_begin_behind_what_the_prompt_and_both_sequences_share():
    found = encode_preference(Preference("ab", "c", "d"), ByteTokenizer(), None, 9)
    assert found == (list(b"abc\0"), list(b"abd\0"), 2)
    asked, good, bad = message("user", "a"), message("assistant", "b"), message("assistant", "c")
    with Chat("{% for m in messages %}{{ m.content }};{% endfor %}", {}, "here") as chat:
        found = encode_preference(Preference([asked], [good], [bad]), ByteTokenizer(), chat, 9)
    assert found == (list(b"a;b;"), list(b"a;c;"), 2)


def test_what_cannot_be_encoded_is_said():
    with pytest.raises(UserError, match="no chat template for messages"):
        encode_preference(Preference([], [], []), ByteTokenizer(), None, 9)
    with pytest.raises(UserError, match=r"a sequence of 5 tokens.* does not fit in seq_len=3"):
        encode_preference(Preference("ab", "c", "dd"), ByteTokenizer(), None, 4)
    with Chat("{{ messages[0].content }}", {}, "here") as chat:
        messages = Preference([message("user", "a")], [message("assistant", "b")], [])
        with pytest.raises(UserError, match="an answer has no token behind the prompt"):
            encode_preference(messages, ByteTokenizer(), chat, 4)
