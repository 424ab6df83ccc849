"""The worker renders as transformers does, with its filters, functions and blocks."""

import jinja2
import pytest

from jaxllm.untrusted.template_worker import compile_template


def test_what_transformers_offers_to_templates():
    template = "{{ a | tojson }}{% generation %}!{% endgeneration %}{{ strftime_now('%%') }}"
    assert compile_template(template)({"a": {"b": "<é>"}})[0] == '{"b": "<é>"}!%'


def test_a_template_may_refuse_a_conversation():
    with pytest.raises(jinja2.TemplateError, match="roles must alternate"):
        compile_template("{{ raise_exception('roles must alternate') }}")({})


def test_generation_blocks_are_spans_of_each_text():
    template = "é{% for m in a %}<{% generation %}{{ m }}{% endgeneration %}>{% endfor %}"
    render = compile_template(template)
    assert render({"a": ["one", "", "three"]}) == ("é<one><><three>", [(2, 5), (9, 14)])
    assert render({"a": ["x"]}) == ("é<x>", [(2, 3)])
