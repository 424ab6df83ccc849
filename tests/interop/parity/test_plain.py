"""Parity of a PyTorch model of a user's own, with the rules that docs/rules.md shows."""

import json

import pytest
import torch
from hf_cases import randomize
from pages import ROOT, shown_files

from jaxllm.interop import CheckpointError, user_rules
from jaxllm.interop.parity import check_checkpoint

SIZE = {"vocab": 96, "width": 48, "depth": 2, "heads": 6, "kv_heads": 2, "hidden": 80}
FORWARD = ("weights", "config", "logits", "layers")


@pytest.fixture
def mine(tmp_path):
    """A folder with the page's files and, in `mine`, a model with random numbers everywhere."""
    for name, text in shown_files(ROOT / "docs" / "rules.md").items():
        (tmp_path / name).write_text(text)
    module = user_rules.family_of(tmp_path / "my_rules.py").reference(SIZE)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(json.dumps(SIZE))
    torch.save(randomize(module).state_dict(), tmp_path / "mine" / "weights.pt")
    return tmp_path


def check(folder, levels=FORWARD):
    return check_checkpoint(folder / "mine", rules=folder / "my_rules.py", levels=levels)


def edit(folder, old, new):
    file = folder / "my_rules.py"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def test_an_honest_model_passes_at_every_step(mine):
    report = check(mine)
    assert report.ok
    assert report.logits.relative_l2 <= 1e-5
    paths = {tap.path for tap in report.taps}
    assert {"layers.1.attn.q_proj", "layers.1.attn", "layers.1.mlp", "layers.1"} <= paths


def test_gradients_and_what_it_generates_are_compared_as_well(mine):
    levels = ["gradients", "step", "generate"]
    assert check(mine, levels).verdicts == dict.fromkeys(levels, True)


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        (' : D (N H)"', ' : (N H) D"', "layers.0.attn"),  # square: no shape tells
        ("{G=gate|up}", "{G=up|gate}", "layers.0.mlp"),
        ('rope_layout="interleaved"', 'rope_layout="half"', "layers.0.attn"),
        ("norm_eps=1e-5", "norm_eps=1e-3", "layers.0.attn_norm"),
    ],
)
def test_a_bijection_that_is_the_wrong_one_is_caught_where_it_is(old, new, where, mine):
    edit(mine, old, new)
    report = check(mine, ["logits", "layers"])
    assert not report.ok
    assert report.first_divergence.path.startswith(where)


def test_it_needs_a_reference_that_has_what_is_stored(mine):
    edit(mine, "MyModel(**fields)", "MyModel(**{**fields, 'depth': 3})")
    with pytest.raises(CheckpointError, match=r"the reference has blocks\.2\.\S+, which is not"):
        check(mine)
    edit(mine, "'depth': 3", "'depth': 1")
    with pytest.raises(CheckpointError, match=r"blocks\.1\.\S+ is stored, which the reference"):
        check(mine)
    edit(mine, "'depth': 1", "'hidden': 8")
    with pytest.raises(CheckpointError, match="size mismatch for blocks"):
        check(mine)
    edit(mine, "def reference", "def other")
    with pytest.raises(CheckpointError, match="defines no reference"):
        check(mine)
