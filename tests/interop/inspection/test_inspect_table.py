"""The terminal table of an inspection."""

import io

from rich.console import Console

from jaxllm.interop.inspection.inspect import UNKNOWN, Inspection, TensorGroup
from jaxllm.interop.inspection.inspect_table import render

EXPERTS = "model.language_model.layers.{0..47}.feed_forward.experts.{0..127}.gate_up_proj.weight"
FILLED = TensorGroup(
    *(EXPERTS, 6144, "bfloat16", (5120, 16384), 2**40),
    use="layers.*.mlp.gate_proj.kernel, layers.*.mlp.up_proj.kernel",
)


def text_of(inspection):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render(inspection))
    return console.export_text()


def test_long_names_wrap_and_are_never_truncated():
    scale = TensorGroup("scale", 1, "float32", (), 4, UNKNOWN)
    fields = {"hidden_size": "read", "use_cache": "ignored", "rope": "unknown"}
    text = text_of(Inspection("model", "llama4", fields, (FILLED, scale), ("scale is unknown",)))
    assert max(map(len, text.splitlines())) <= 80
    joined = "".join(text.replace("1.1 TB", "").split())
    assert EXPERTS in joined
    assert "layers.*.mlp.up_proj.kernel" in joined
    for words in ("1.1 TB", "bfloat16 5120 x 16384", "float32 scalar", "✗ scale is unknown"):
        assert words in text
    assert "config: 1 fields read; ignored: use_cache; unknown: rope" in text


def test_a_folder_without_a_config_has_no_known_family():
    assert "no known family" in text_of(Inspection("model", None, {}, (FILLED,), ()))


def test_markup_and_escape_codes_in_names_are_shown_as_they_are():
    name = "[red]w[/red]\x1b[2J\n\ud800"
    group = TensorGroup(name, 1, "float32", (), 4, UNKNOWN)
    text = text_of(Inspection(name, name, {name: "unknown"}, (group,), (name,)))
    assert text.count("[red]w[/red]\\x1b[2J\\n\\ud800") == 5
