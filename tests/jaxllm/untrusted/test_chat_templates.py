"""Chat templates end in time, in bounded memory, whatever they compute."""

import pytest

from jaxllm.errors import UserError
from jaxllm.untrusted import chat_templates
from jaxllm.untrusted.chat_templates import render_template

NEVER = "it does not end within 1 s of CPU time"
MEMORY = "it needs too much memory"


def test_a_template_has_its_variables():
    assert render_template("{{ a }} {{ b[0] }} \N{SNOWMAN}", {"a": "x", "b": [1]}) == "x 1 ☃"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", NEVER),
        ("{{ 'a' * 10000000000 }}", MEMORY),
        ("{{ 9**(9**9) }}", NEVER),
        ("{{ '%1000000000d' % 3 }}", MEMORY),
        ("{{ 'a' * 10000000 }}", "too long"),
        ("{{ raise_exception('no') }}", "no"),
    ],
    ids=range(6),
)
def test_others_are_refused(template, message, monkeypatch):
    monkeypatch.setattr(chat_templates, "SECONDS", 1)
    with pytest.raises(UserError, match=message):
        render_template(template, {})
