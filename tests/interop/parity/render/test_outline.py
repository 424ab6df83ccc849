"""Grouping of activations by layer and name."""

from parity_reports import tap

from jaxllm.interop.parity.render.outline import outline


def test_activations_of_different_layers_keep_their_order():
    paths = ("0.norm", "0.up", "0.mlp", "0", "1.norm", "1.router", "1.mlp", "1")
    rows = [tap(f"layers.{path}", 0.0) for path in paths]
    assert outline(rows).activations == ("norm", "router", "up", "mlp", "output")


def test_modules_outside_of_layers_are_before_or_after_them():
    rows = [tap(path, 0.0) for path in ("embed", "layers.0.mlp", "layers.0", "lm_head")]
    parts = outline(rows)
    assert parts.before == (rows[0],)
    assert parts.layers == {"layers.0": {"mlp": rows[1], "output": rows[2]}}
    assert parts.after == (rows[3],)
