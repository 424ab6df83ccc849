"""Choices of options: every level and format, looked up when help is printed and not before."""

import subprocess
import sys

from jaxllm.commands.choices import FormatNames, LevelNames
from jaxllm.interop.formats.table import writable_formats
from jaxllm.interop.parity.levels.table import LEVELS


def test_every_level_is_named_in_order():
    assert str(LevelNames()).split(", ") == list(LEVELS)


def test_the_levels_by_default_are_named_alone():
    found = str(LevelNames(by_default=True)).split(", ")
    assert found == [name for name, level in LEVELS.items() if level.by_default]
    assert 0 < len(found) < len(LEVELS)


def test_every_format_that_can_be_written_is_a_choice():
    assert list(FormatNames()) == list(writable_formats())
    assert list(FormatNames("peft")) == [*writable_formats(), "peft"]
    assert "hf" in FormatNames()
    assert "gguf" not in FormatNames()


def test_a_choice_imports_nothing_until_it_is_looked_at():
    """So that every command starts at once, whatever it offers."""
    code = (
        "import sys; from jaxllm.commands.choices import FormatNames, LevelNames; "
        "LevelNames(), FormatNames(); "
        "assert not any(name.startswith('jaxllm.interop') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
