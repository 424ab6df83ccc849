"""An inspection is shown whole: tensors, fields, totals and problems."""

import io

from rich.console import Console

from jaxllm.interop.inspection.inspect import Inspection, TensorGroup
from jaxllm.interop.inspection.inspect_table import render


def shown(inspection: Inspection) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(render(inspection))
    return console.file.getvalue()


def test_everything_is_shown():
    groups = (
        TensorGroup("layers.{0..3}.w", 4, "float32", (5, 6), 480, "layers.*.w"),
        TensorGroup("scale", 1, "bfloat16", (), 2, "unknown"),
    )
    fields = {"width": "read", "depth": "read", "name": "ignored", "extra": "unknown"}
    said = shown(Inspection("folder", "llama", fields, groups, ("extra=1 is not a field",)))
    for text in (
        *("folder: llama", "layers.{0..3}.w", "float32 5 x 6 → layers.*.w", "480 B"),
        *("bfloat16 one number → unknown", "121 numbers, 482 B"),
        *("config: 2 fields read; ignored name; unknown extra", "✗ extra=1 is not a field"),
    ):
        assert text in said, text


def test_an_unknown_folder_has_neither_family_nor_config():
    said = shown(Inspection("folder", None, {}, (), ()))
    assert "folder: no known family" in " ".join(said.split())
    assert "config" not in said
    assert "✗" not in said
