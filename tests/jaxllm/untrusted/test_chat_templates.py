"""Chat templates end in time, in bounded memory, whatever they compute."""

import pytest

from jaxllm.errors import UserError
from jaxllm.untrusted import chat_templates
from jaxllm.untrusted.chat_templates import TemplateRenderer, render_template

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


def test_one_process_renders_many_texts_and_a_new_one_follows_a_stopped_one(monkeypatch):
    monkeypatch.setattr(chat_templates, "SECONDS", 1)
    template = "{% for i in range(n) %}{% for j in range(n) %}{% endfor %}{% endfor %}{{ n }}"
    with TemplateRenderer(template) as renderer:
        texts, processes = [], []
        for n in (1, 2, 3):
            texts.append(renderer.render({"n": n}).text)
            processes.append(renderer._process)
        assert texts == ["1", "2", "3"]
        assert len(set(processes)) == 1
        with pytest.raises(UserError, match=NEVER):
            renderer.render({"n": 99999})
        assert renderer.render({"n": 4}).text == "4"
        assert renderer._process not in processes
    assert renderer._process is None
