"""Which chat template is meant: that of a folder, a file, or one by name."""

import json

import pytest

from jaxllm.errors import UserError
from jaxllm.tokenization.chat_template import (
    NAMED,
    find_template,
    named_template,
    template_variables,
)


def test_a_file_comes_before_the_config_and_a_default_before_others(tmp_path):
    several = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": several, "eos_token": "</s>", "bos_token": {"content": "<s>"}})
    )
    assert find_template(tmp_path) == "b"
    assert template_variables(tmp_path) == {"eos_token": "</s>", "bos_token": "<s>"}
    (tmp_path / "chat_template.jinja").write_text("c")
    assert find_template(tmp_path) == "c"


def test_a_named_template_is_a_file_or_one_of_ours(tmp_path):
    (tmp_path / "mine.jinja").write_text("é")
    assert named_template(str(tmp_path / "mine.jinja")) == "é"
    for file in NAMED.glob("*.jinja"):
        assert "{%- generation %}" in named_template(file.stem)
    with pytest.raises(UserError, match=r"nowhere\.jinja does not exist"):
        named_template("nowhere.jinja")
    with pytest.raises(UserError, match=r"'llama-3' is no chat template.*did you mean 'llama3'\?"):
        named_template("llama-3")
