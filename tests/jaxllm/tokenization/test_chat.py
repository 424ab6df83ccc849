"""Chat templates: the text of `apply_chat_template`, and templates that are refused."""

import json

import numpy as np
import pytest
from tokenizer_kinds import save_tokenizer
from transformers import AutoTokenizer

from jaxllm.errors import UserError
from jaxllm.tokenization import ByteTokenizer, load_tokenizer
from jaxllm.tokenization.chat import Chat, render_chat

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}\n"
    "  {% if m.role == 'system' %}{% continue %}{% endif %}\n"
    "<|im_start|>{{ m.role }}\n{{ m.content | tojson }}<|im_end|>\n{% endfor %}"
    "{% if tools %}tools{% endif %}"
    "{% if add_generation_prompt %}{% generation %}<|im_start|>assistant\n{% endgeneration %}"
    "{% endif %}"
)
MESSAGES = [
    {"role": "system", "content": "no"},
    {"role": "user", "content": "<hi> \N{SNOWMAN}"},
]


@pytest.mark.parametrize("place", ["config", "list", "file"])
def test_the_text_and_ids_are_those_of_transformers(place, tmp_path):
    folder = save_tokenizer("byte-level, begins", tmp_path)
    if place == "file":
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    else:
        several = [{"name": "other", "template": "x"}, {"name": "default", "template": TEMPLATE}]
        file = folder / "tokenizer_config.json"
        template = TEMPLATE if place == "config" else several
        file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": template}))
    theirs = AutoTokenizer.from_pretrained(folder)
    options = {"add_generation_prompt": True}
    text = theirs.apply_chat_template(MESSAGES, tokenize=False, **options)
    assert render_chat(folder, MESSAGES) == text
    ids = theirs.apply_chat_template(MESSAGES, return_dict=False, **options)
    assert load_tokenizer(folder).encode_chat(text) == ids
    assert ids.count(theirs.convert_tokens_to_ids("<|im_start|>")) == 2


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template"),
        (7, "has no chat template"),
        ([{"name": [], "template": "x"}], "has no chat template"),
        ("{% for", "the chat template fails: "),
        ("{{ raise_exception('roles must alternate') }}", "fails: roles must alternate"),
        ("{{ messages.__class__.__mro__ }}", "fails: access to attribute '__class__'"),
        ("{{ messages.append(1) }}", "fails: .*unsafe"),
        ("x" * 1_000_001, "more than 1000000 characters"),
    ],
    ids=range(8),
)
def test_what_is_no_harmless_template_is_refused(template, message, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(UserError, match=message):
        render_chat(tmp_path, MESSAGES)


def test_a_template_that_is_no_text_is_named(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"chat_template\.jinja is not UTF-8"):
        render_chat(tmp_path, MESSAGES)


MARKED = (
    "{{ bos_token }}{% if tools %}<|im_start|>tools {{ tools | tojson }}<|im_end|>{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% if m.calls %}{{ m.calls | tojson }}{% endif %}<|im_end|>"
    "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PLAIN = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
TALK = [
    {"role": "system", "content": "the hat"},
    {"role": "user", "content": "Hello, world! <|im_end|> \N{SNOWMAN}"},
    {"role": "assistant", "content": "the cat and <|im_start|>caf\u00e9"},
    {"role": "user", "content": "the cat and caf\u00e9"},  # as the assistant said
    {"role": "assistant", "content": "x 123", "calls": [{"name": "hat", "arguments": {"a": 1}}]},
    {"role": "tool", "content": "hat"},
    {"role": "assistant", "content": "\N{PILE OF POO} naive"},
]
TOOLS = [{"type": "function", "function": {"name": "hat", "parameters": {}}}]


@pytest.mark.parametrize("kind", ["byte-level, begins", "unigram, ends", "pieces"])
def test_the_assistants_tokens_are_those_of_transformers(kind, tmp_path):
    folder = save_tokenizer(kind, tmp_path, chat_template=MARKED)
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        TALK, tools=TOOLS, return_dict=True, return_assistant_tokens_mask=True
    )
    tokenizer = load_tokenizer(folder)
    with Chat.of(folder) as chat:
        ours = chat.encode(TALK, tokenizer, tools=TOOLS)
    assert ours.ids == theirs["input_ids"]
    assert ours.is_written.tolist() == [bool(mask) for mask in theirs["assistant_masks"]]
    assert 9 < ours.is_written.sum() < len(ours.ids) - 9


def test_without_marks_the_turns_are_found_by_their_tokens(tmp_path):
    folder = save_tokenizer("byte-level, begins", tmp_path, chat_template=PLAIN)
    tokenizer = load_tokenizer(folder)
    (tmp_path / "marked.jinja").write_text(MARKED)
    with Chat.of(folder) as plain, Chat.of(folder, str(tmp_path / "marked.jinja")) as marked:
        assert plain.template != marked.template
        found, expected = (chat.encode(TALK, tokenizer, tools=TOOLS) for chat in (plain, marked))
    assert found.ids == expected.ids
    np.testing.assert_array_equal(found.is_written, expected.is_written)


def test_a_template_that_shows_a_turn_otherwise_later_needs_marks(tmp_path):
    template = PLAIN.replace("{{ m.content }}{% if", "{% if loop.last %}!{% endif %}{% if")
    tokenizer = load_tokenizer(save_tokenizer("byte-level", tmp_path, chat_template=template))
    with Chat.of(tmp_path) as chat, pytest.raises(UserError, match=r"message 3 otherwise .* marks"):
        chat.encode(TALK, tokenizer)


@pytest.mark.parametrize("name", ["chatml", "llama3", "plain"])
def test_named_templates_mark_what_the_assistant_writes(name, tmp_path):
    folder = save_tokenizer("byte-level", tmp_path)
    tokenizer = load_tokenizer(folder)
    with Chat.of(folder, name) as chat:
        encoded = chat.encode(TALK, tokenizer)
        prompt = chat.render(TALK[:2], answering=True)
        assert chat.render(TALK).startswith(prompt)
    written = tokenizer.decode(np.array(encoded.ids)[encoded.is_written])
    assert written.startswith(TALK[2]["content"])
    assert TALK[3]["content"] + "<" not in written
    assert encoded.is_written[: len(tokenizer.encode_chat(prompt))].sum() == 0


def test_bytes_have_named_templates_alone():
    talk = [{"role": "user", "content": "\u00e9"}, {"role": "assistant", "content": "\u00e9!"}]
    with Chat.of(None, "plain") as chat:
        encoded = chat.encode(talk, ByteTokenizer())
    written = ByteTokenizer().decode(np.array(encoded.ids)[encoded.is_written])
    assert written == "\u00e9!\0"
    with pytest.raises(UserError, match="bytes have no chat template"):
        Chat.of(None)
    with pytest.raises(UserError, match=r"'chatnl' is no chat template.*did you mean 'chatml'"):
        Chat.of(None, "chatnl")
