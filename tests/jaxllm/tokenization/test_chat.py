"""Chat templates: the text of `apply_chat_template`, and templates that are refused."""

import json

import pytest
from tokenizer_kinds import save_tokenizer
from transformers import AutoTokenizer

from jaxllm.errors import UserError
from jaxllm.tokenization import load_tokenizer
from jaxllm.tokenization.chat import render_chat

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
