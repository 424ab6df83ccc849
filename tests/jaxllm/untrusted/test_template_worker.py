"""The worker renders as transformers does, with its filters, functions and blocks."""

import jinja2
import pytest

from jaxllm.untrusted.template_worker import render


def test_what_transformers_offers_to_templates():
    template = "{{ a | tojson }}{% generation %}!{% endgeneration %}{{ strftime_now('%%') }}"
    assert render(template, {"a": {"b": "<é>"}}) == '{"b": "<é>"}!%'


def test_a_template_may_refuse_a_conversation():
    with pytest.raises(jinja2.TemplateError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}", {})
