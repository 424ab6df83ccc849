"""Escape codes and halves of characters are shown as escapes; all other text stays as it is."""

import pytest
from rich.console import Console
from rich.table import Table

from jaxllm.untrusted.printable import literal, printable


@pytest.mark.parametrize(
    "text", ["", "a\tb\nc", "größer ✗ 日本語 🙂", "[bold]x[/bold] :smile: <b>"]
)
def test_text_stays_as_it_is(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("a\rb\x07\x9b2J", r"a\rb\x07\x9b2J"),
        ("\ud800", r"\ud800"),
        ("a\u202eb\u2066", r"a\u202eb\u2066"),
    ],
)
def test_what_would_act_on_a_terminal_is_escaped(text, shown):
    assert printable(text) == shown
    printable(text).encode()


def test_markup_and_escape_codes_in_tables_are_shown_as_they_are(capsys):
    console = Console(width=60, force_terminal=True, color_system=None)
    table = Table(title=literal("[red]t[/red]"))
    table.add_row(literal("[bold]x[/bold] :smile: \x1b[31m"))
    console.print(table)
    out = capsys.readouterr().out
    assert "[red]t[/red]" in out
    assert "[bold]x[/bold] :smile: \\x1b[31m" in out
