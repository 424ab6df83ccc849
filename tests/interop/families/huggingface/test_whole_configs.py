"""Configs of released models, at their full sizes: read, or refused for a field that matters."""

import json
from pathlib import Path

import pytest

from jaxllm.config import make_config
from jaxllm.interop.families import FAMILIES

TESTS = Path(__file__).parents[3]
CONFIGS = json.loads((TESTS / "whole_configs.json").read_text())
REFUSED = {
    "opt-350m": "word_embed_proj_dim=512 is not supported, only None or 1024",
    "falcon-rw-1b": "alibi=True is not supported, only False",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_released_config_is_read_and_written_or_refused(name):
    given = CONFIGS[name]
    family = next(family for family in FAMILIES if family.model_type == given["model_type"])
    fields = family.fields(given)
    values, _ = family.read_config(fields, {})
    assert fields.finish() == ([REFUSED[name]] if name in REFUSED else [])
    if name in REFUSED:
        return
    config = make_config(values)
    again, _ = family.read_config(family.fields(family.write_config(config, {})), {})
    assert make_config(again) == config
