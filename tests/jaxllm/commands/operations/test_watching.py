"""`jaxllm runs` and `jaxllm plot`."""

import json

import pytest

from jaxllm.cli import main
from jaxllm.commands.operations.watching import _ago

CONFIG = """
output: {output}
steps: 4
batch_size: 2
seq_len: 8
model: {{vocab_size: 256, embed_dim: 8, num_layers: 1, num_heads: 1, num_kv_heads: 1, head_dim: 8,
        mlp_dim: 8}}
"""


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.format(output=folder))
    rows = [{"step": 2, "loss": 3.5}, {"step": 2, "speed/tokens_per_s": 1234.5, "speed/mfu": 0.4}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_runs_are_listed_as_a_table_and_as_json(run, capsys):
    assert main(["runs", str(run.parent)]) == 0
    out = capsys.readouterr().out
    for text in ("one", "stopped", "2/4", "3.5000", "1,234", "40.0%", "s ago"):
        assert text in out
    assert main(["runs", str(run.parent), "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert (found["name"], found["step"], found["held_out_loss"]) == ("one", 2, None)
    (run / "config.yaml").write_text("steps: 4")
    assert main(["runs", str(run.parent)]) == 0
    captured = capsys.readouterr()
    assert "damaged" in captured.out
    assert "0/?" in captured.out
    assert f"jaxllm: {run / 'config.yaml'}" in captured.err
    (run / "empty").mkdir()
    assert main(["runs", str(run / "empty")]) == 0
    assert "no runs in" in capsys.readouterr().out


def test_plot_writes_a_picture_and_a_page(run, tmp_path, capsys):
    assert main(["plot", str(run), "--output", str(tmp_path / "new" / "plot")]) == 0
    assert capsys.readouterr().out.split()[0] == "wrote"
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"plot.png", "plot.html"}
    assert main(["plot", str(tmp_path)]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.2, "3 s ago"), (120, "2 min ago"), (7200, "2 h ago"), (3 * 86400, "3 d ago")],
)
def test_times_are_in_the_largest_unit_that_fits(seconds, text):
    assert _ago(seconds) == text
