"""Two checkpoints against each other: every change is found, by name and bit, and nothing else."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny import random_model

from jaxllm.cli import main
from jaxllm.errors import UserError
from jaxllm.interop import convert, save_pretrained
from jaxllm.interop.parity import compare_checkpoints
from jaxllm.interop.parity.render import html
from jaxllm.interop.parity.render.sentences import explanation, headline

CHANGED = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "base"
    save_pretrained(random_model(), folder, format="hf")
    return folder


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory):
    """The same model with one changed element, another rms_norm_eps, and in native format."""
    folder, native = (tmp_path_factory.mktemp("tuned") / name for name in ("tuned", "native"))
    save_pretrained(random_model(), folder, format="hf")
    tensors = load_file(folder / "model.safetensors")
    tensors[CHANGED] = tensors[CHANGED].copy()
    tensors[CHANGED][3, 5] = np.nextafter(tensors[CHANGED][3, 5], np.float32(9))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    convert(folder, native, to="native")
    return native


def test_a_checkpoint_equals_itself_in_another_format(base, tmp_path):
    convert(base, tmp_path / "native", to="native")
    report = compare_checkpoints(base, tmp_path / "native", levels=("config", "weights", "logits"))
    assert report.ok, report.first_divergence
    assert headline(report) == "The checkpoints are equal"
    digests = report.digests
    assert digests["weights of the model"] == digests["weights of the reference"]


def test_every_change_is_named_with_its_layer(base, tuned):
    """Native checkpoints store the layers stacked."""
    report = compare_checkpoints(base, tuned)
    assert report.verdicts == {"config": False, "weights": False}
    [field] = [row for row in report.config if not row.ok]
    assert field.path == "config.norms.eps"
    assert float(field.theirs) == 1e-3
    [weight] = [row for row in report.weights if not row.ok]
    assert (weight.path, weight.parameter) == ("layers.1.mlp.down_proj", "kernel")
    assert weight.differing_bits in range(1, 24)
    assert weight.remark.startswith("relative L2 of the change ")
    assert headline(report) == "The checkpoints differ"
    for text in ("config.norms.eps", "layers.1.mlp.down_proj.kernel", str(tuned)):
        assert text in html.render(report)


def test_outputs_are_compared_if_asked(base, tuned):
    report = compare_checkpoints(base, tuned, levels=("logits",))
    [row] = report.rows["logits"]
    assert row.relative_l2 > 1e-4
    assert 0 < row.kl_mean <= row.kl_max
    assert 0 <= row.top1_agreement <= 1
    assert "logits differ by " in explanation(report)
    [written] = report.to_json()["outputs"]
    assert written["relative_l2"] == row.relative_l2
    assert "same top-1" in html.render(report)


def test_other_sizes_and_missing_arrays_have_a_remark(base, tmp_path):
    save_pretrained(random_model(num_layers=2, mlp_dim=24), tmp_path / "other", format="hf")
    rows = {row.path: row for row in compare_checkpoints(base, tmp_path / "other").weights}
    assert rows["layers.2.mlp.down_proj"].remark == "only in the model"
    assert (
        rows["layers.0.mlp.down_proj"].remark == "(24, 32) in the reference, (56, 32) in the model"
    )


def test_another_dtype_is_a_difference(base, tmp_path):
    convert(base, tmp_path / "narrow", to="hf", dtype="bfloat16")
    report = compare_checkpoints(base, tmp_path / "narrow", levels=("weights",))
    assert not any(row.ok for row in report.weights)
    assert all("float32 in the model, bfloat16" in row.remark for row in report.weights)


def test_unknown_levels_are_refused(base):
    with pytest.raises(UserError, match="layers: two checkpoints are compared at the levels"):
        compare_checkpoints(base, base, levels=("layers",))


def test_the_command_says_what_differs(base, tuned, tmp_path, capsys):
    report = ["--output", str(tmp_path / "report")]
    assert main(["parity", str(base), "--against", str(base), *report]) == 0
    assert "The checkpoints are equal" in capsys.readouterr().out
    assert main(["parity", str(base), "--against", str(tuned), *report]) == 1
    assert "The checkpoints differ" in capsys.readouterr().out
    assert json.loads((tmp_path / "report" / "parity.json").read_text())["ok"] is False
    for option in (["--scratch", "x"], ["--random"], ["--dtype", "bfloat16"]):
        assert main(["parity", str(base), "--against", str(tuned), *option]) == 2
        assert f"{option[0]} cannot be combined with --against" in capsys.readouterr().err
