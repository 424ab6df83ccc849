"""A user's own PyTorch model: the example of docs/rules.md, and mistakes in such rules."""

import dataclasses
import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
from hf_cases import randomize
from pages import ROOT, shown_files
from safetensors.torch import load_file, save_file
from tiny import random_model, relative_l2

from jaxllm.checkpoint_origin import Origin
from jaxllm.interop import (
    CheckpointError,
    convert,
    inspect,
    load_pretrained,
    save_pretrained,
    verify,
)
from jaxllm.interop.families import Layout
from jaxllm.interop.loading import user_family

TOLERANCE = 1e-5  # relative L2 of logits, float32
SIZE = {"vocab": 96, "width": 48, "depth": 3, "heads": 6, "kv_heads": 2, "hidden": 80}
FILES = shown_files(ROOT / "docs" / "rules.md")

logits_of = jax.jit(lambda model, tokens: model(tokens).logits)


@pytest.fixture(autouse=True)
def forget():
    """Forgets all given rules, as if each test were a new process."""
    user_family.GIVEN.clear()


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """Returns the model of the page, with distinct random numbers in every tensor."""
    file = tmp_path_factory.mktemp("model") / "my_model.py"
    file.write_text(FILES["my_model.py"])
    return randomize(runpy.run_path(str(file))["MyModel"](**SIZE)).eval()


@pytest.fixture
def rules(tmp_path) -> Path:
    file = tmp_path / "my_rules.py"
    file.write_text(FILES["my_rules.py"])
    return file


@pytest.fixture
def folder(mine, tmp_path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SIZE))
    torch.save(mine.state_dict(), folder / "weights.pt")
    return folder


def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, SIZE["vocab"], (2, 320))


def edit(file: Path, old: str, new: str) -> Path:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    return file


def problems(folder: Path, rules: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(folder, rules=rules)
    return str(caught.value)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_logits_match_the_pytorch_model(mine, folder, rules):
    with torch.no_grad():
        expected = mine(torch.tensor(tokens())).numpy()
    assert relative_l2(logits_of(load_pretrained(folder, rules=rules), tokens()), expected) <= (
        TOLERANCE
    )


def test_save_writes_the_original_file_and_config(mine, folder, rules, tmp_path):
    model = load_pretrained(folder, rules=str(rules))
    save_pretrained(model, tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"weights.pt", "config.json"}
    assert same(torch.load(tmp_path / "out" / "weights.pt"), mine.state_dict())
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == SIZE


def save_wrapped(state: dict, folder: Path) -> Path:
    torch.save({f"module._orig_mod.{n}": t for n, t in state.items()}, folder / "step-7.bin")
    return folder / "step-7.bin"


def save_safetensors(state: dict, folder: Path) -> Path:
    save_file({n: t for n, t in state.items() if n != "head.weight"}, folder / "w.safetensors")
    return folder / "w.safetensors"


def save_without_suffix(state: dict, folder: Path) -> Path:
    torch.save(state, folder / "latest")
    return folder / "latest"


def save_shards(state: dict, folder: Path) -> Path:
    names = sorted(state)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in shards.items():
        save_file({name: state[name].clone() for name in own}, folder / file)
    index = {"weight_map": {name: file for file, own in shards.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


SAVES = [save_wrapped, save_safetensors, save_without_suffix, save_shards]


@pytest.mark.parametrize("save", SAVES, ids=lambda save: save.__name__)
def test_weights_load_from_any_file_type(save: Callable, mine, folder, rules, tmp_path):
    expected = logits_of(load_pretrained(folder / "weights.pt", rules=rules), tokens())
    (folder / "weights.pt").unlink()
    state = mine.state_dict()
    model = load_pretrained(save(state, folder), rules=rules)
    np.testing.assert_array_equal(logits_of(model, tokens()), expected)
    save_pretrained(model, tmp_path / "out", rules=rules)
    [file] = [file for file in (tmp_path / "out").iterdir() if file.name != "config.json"]
    written = load_file(file) if file.suffix == ".safetensors" else torch.load(file)
    if "head.weight" not in written:  # nor was it read
        written["head.weight"] = written["tok.weight"]
    assert same(written, state)


def test_folder_with_several_files_asks_for_one(folder, rules):
    torch.save({}, folder / "optimizer.pt")
    assert "optimizer.pt, weights.pt: give the path of one file" in problems(folder, rules)
    assert load_pretrained(folder / "weights.pt", rules=rules).config.num_layers == 3


def test_constant_config_needs_no_config_file(mine, folder, rules, tmp_path):
    built = load_pretrained(folder, rules=rules).config
    table = user_family.resolve_family(rules).table(built, Layout())
    constant = SimpleNamespace(config=built, rules=table.rules, tied=table.tied)
    (folder / "config.json").unlink()
    model = load_pretrained(folder, rules=constant)
    assert model.config == built
    save_pretrained(model, tmp_path / "out", rules=constant)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["weights.pt"]
    assert same(torch.load(tmp_path / "out" / "weights.pt"), mine.state_dict())
    with pytest.raises(CheckpointError, match="its fields cannot express embed_dim=32"):
        save_pretrained(random_model(), tmp_path / "no", rules=constant)


def test_verify_inspect_and_convert_take_rules(folder, rules, tmp_path, mine):
    found = verify(folder, rules=rules)
    assert found.ok
    assert found.differing_bits == 0
    assert {tensor.name for tensor in found.tensors} == set(mine.state_dict())
    assert inspect(folder, rules=rules).ok
    convert(folder / "weights.pt", tmp_path / "hf", to="hf", rules=rules)
    model = load_pretrained(tmp_path / "hf")
    assert model.origin.family == "llama"
    with torch.no_grad():
        expected = mine(torch.tensor(tokens())).numpy()
    assert relative_l2(logits_of(model, tokens()), expected) <= TOLERANCE


def test_native_checkpoint_is_exported_by_named_rules(folder, rules, tmp_path, mine):
    convert(folder, tmp_path / "native", to="native", rules=rules)
    user_family.GIVEN.clear()  # in another process
    model = load_pretrained(tmp_path / "native")
    with pytest.raises(CheckpointError, match=re.escape("of my_rules.py, which were not")):
        save_pretrained(model, tmp_path / "out")
    convert(tmp_path / "native", tmp_path / "out", to="rules", rules=rules)
    assert same(torch.load(tmp_path / "out" / "weights.pt"), mine.state_dict())


def test_fields_export_a_model_that_came_from_another_family(folder, rules, tmp_path):
    convert(folder, tmp_path / "hf", to="hf", rules=rules)
    model = load_pretrained(tmp_path / "hf")
    with pytest.raises(CheckpointError, match="vocab is missing"):
        save_pretrained(model, tmp_path / "out", rules=rules)
    names = ("vocab_size", "embed_dim", "num_layers", "num_heads", "num_kv_heads", "mlp_dim")
    pairs = ", ".join(f"{own}=config.{name}" for own, name in zip(SIZE, names, strict=True))
    rules.write_text(f"{rules.read_text()}\ndef fields(config):\n    return dict({pairs})\n")
    # RoPE of transformers' Llama rotates halves; this model's config file only knows neighbors.
    with pytest.raises(CheckpointError, match=r"its fields cannot express rope\.layout='half'"):
        save_pretrained(model, tmp_path / "out", rules=rules)
    edit(rules, 'layout="interleaved"', 'layout="half"')
    save_pretrained(model, tmp_path / "out", rules=rules)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == SIZE


def test_sizes_derived_and_ignored_tensors_are_used(mine, folder, rules, tmp_path):
    state = {**mine.state_dict(), "scale": torch.arange(3.0), "blocks.0.attn.mask": torch.ones(2)}
    state["norm.weight"] = state["norm.weight"].view(4, 12)
    torch.save(state, folder / "weights.pt")
    edit(rules, '"norm.weight : D"', '"norm.weight : a b"')
    edit(rules, '"final_norm.scale : D"', '"final_norm.scale : (a b)"')
    text = """
import numpy as np
sizes = {"a": 4, "b": 12}
ignored = {"blocks.*.mask": "a constant"}
def derived(config): return {"scale": lambda: np.arange(3, dtype=np.float32)}
"""
    rules.write_text(rules.read_text() + text)
    save_pretrained(load_pretrained(folder, rules=rules), tmp_path / "out")
    del state["blocks.0.attn.mask"]
    assert same(torch.load(tmp_path / "out" / "weights.pt"), state)


# One error names everything that is wrong and suggests what may have been meant.


def test_one_error_lists_every_problem(mine, folder, rules):
    state = mine.state_dict()
    state["blocks.1.attn.wqkw.weight"] = state.pop("blocks.1.attn.wqkv.weight")
    state["norm.weight"] = torch.ones(40)
    torch.save(state, folder / "weights.pt")
    (folder / "config.json").write_text(json.dumps({**SIZE, "dropout": 0.1}))
    edit(rules, '        Rule(theirs + "norm2.weight : D", ours + "mlp_norm.scale : D"),\n', "")
    message = problems(folder, rules)
    for part in (
        "config.json: dropout=0.1 is not a field",
        "blocks.1.attn.wqkv.weight#q is missing; did you mean 'blocks.1.attn.wqkw.weight'?",
        "norm.weight: D is 48 from the config, 40 in the file",
        "no rule covers layers.0:3.mlp_norm.scale of the model",
        "blocks.{0..2}.norm2.weight are unexpected",
    ):
        assert part in message, part


def test_rule_that_matches_nothing_is_named_once(folder, rules):
    edit(rules, "mlp.w3.weight", "mlp.w4.weight")
    message = problems(folder, rules)
    assert "blocks.{0..2}.mlp.w4.weight are missing" in message
    assert "did you mean 'blocks.0.mlp.w3.weight'?" in message
    assert message.count("w4") == 2


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('#v : (K H) D"', '#v : (N H) D"', "N only on the left; K only on the right"),
        ("#v : (K H)", "#z : (K H)", None),
        ("{G=gate|up}", "{G=gate|up|gate}", "G has 'gate' twice"),
        ('"norm.weight : D"', '"norm.weight : U"', "U only on the left; D only on the right"),
        ("mlp_dim=fields", "mlp_dims=fields", "mlp_dims"),
        ("num_kv_heads=", "num_kv_heads=4 or ", "num_kv_heads=4"),
        ("tied = {", "rules = None; tied = {", "my_rules.py does not define rules"),
        ("tied = {", "config = 3; tied = {", "config is a int, not a model config"),
        ("tied = {", "rules = ['x']; tied = {", "'x' is not a Rule"),
    ],
)
def test_mistakes_in_a_rules_file_are_described(old, new, expected, folder, rules):
    edit(rules, old, new)
    if expected is None:
        assert load_pretrained(folder, rules=rules)
        return
    with pytest.raises((ValueError, TypeError)) as caught:
        load_pretrained(folder, rules=rules)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "line", "expected"),
    [
        ("num_kv_heads=", "num_kv_heads=4 or ", 7, "num_heads=6 is not a multiple"),
        ("head_dim=width // heads", "head_dim=width // 0", 13, "ZeroDivisionError: "),
        ('#v : (K H) D"', '#v : (N H) D"', 28, "not a bijection: "),
        ('    theirs, ours = "blocks.{L}."', '    theirs, ours = 1 + "blocks"', 22, "TypeError: "),
        (
            "    return [\n        Rule(",
            "    yield 1 / 0\n    yield from [\n        Rule(",
            23,
            "ZeroDivisionError: ",
        ),
    ],
)
def test_an_error_inside_a_rules_file_names_it_and_not_the_config_file(
    old, new, line, expected, folder, rules
):
    edit(rules, old, new)
    message = problems(folder, rules)
    assert f"my_rules.py, line {line}: {expected}" in message
    assert "config.json" not in message


def test_what_does_not_fit_the_rules_names_their_file(folder, rules):
    edit(rules, "tied = {", 'sizes = {"H": 7}\n\n\ntied = {')
    assert "config.json" not in problems(folder, rules)
    edit(
        rules,
        '"norm.weight : D", "final_norm.scale : D"',
        '"norm.weight : U", "final_norm.scale : U"',
    )
    message = problems(folder, rules)
    assert "my_rules.py: " in message
    assert "config.json" not in message


def test_a_wrong_field_still_names_the_config_file(folder, rules):
    (folder / "config.json").write_text(json.dumps({**SIZE, "width": "wide"}))
    assert "config.json: width='wide' is not of type int" in problems(folder, rules)


def test_an_error_of_the_fields_of_an_export_names_the_file_once(folder, rules, tmp_path):
    rules.write_text(rules.read_text() + "\n\ndef fields(config):\n    return config.nothing\n")
    model = load_pretrained(folder, rules=rules)
    with pytest.raises(CheckpointError) as caught:
        save_pretrained(model, tmp_path / "out", rules=rules)
    message = str(caught.value)
    assert message.count("my_rules.py") == 1
    assert ": AttributeError: " in message


def test_missing_files_and_attributes_are_named(folder, rules, tmp_path):
    assert "is not a file" in problems(folder, "nothing.py")
    assert "does not exist" in problems(tmp_path / "nothing", rules)
    (folder / "config.json").unlink()
    assert "my_rules.py reads config.json, which is not in" in problems(folder, rules)
    assert "does not define config and rules" in problems(folder, SimpleNamespace())


def test_only_code_that_the_user_named_is_run(folder, rules, tmp_path, monkeypatch):
    """Neither a file inside a checkpoint nor a file that a checkpoint names is run."""
    bomb = "raise SystemExit('executed')"
    for name in ("my_rules.py", "rules.py", "config.py", "modeling.py", "__init__.py"):
        (folder / name).write_text(bomb)
    monkeypatch.chdir(tmp_path)
    (folder / "my_rules.py").write_text(bomb)
    assert "config.json has no model_type" in problems(folder, None)
    load_pretrained(
        folder, rules="my_rules.py"
    )  # the file in this folder, not the one in the checkpoint
    rules.unlink()
    assert "is not a file" in problems(folder, "my_rules.py")
    before = set(sys.modules)
    model = random_model()
    model.origin = Origin(
        family=str(folder / "my_rules.py"), config="{}", layout="{}", directory=str(folder)
    )
    with pytest.raises(CheckpointError, match="was loaded by the rules of"):
        save_pretrained(model, tmp_path / "out")
    assert not {name for name in set(sys.modules) - before if "my_rules" in name}


def test_file_name_in_the_layout_cannot_leave_the_folder(folder, rules, tmp_path):
    model = load_pretrained(folder, rules=rules)
    layout = {**json.loads(model.origin.layout), "file": "../../outside.pt"}
    model.origin = dataclasses.replace(model.origin, layout=json.dumps(layout))
    save_pretrained(model, tmp_path / "out")
    assert (tmp_path / "out" / "outside.pt").is_file()


def test_two_rules_files_of_the_same_name_are_ambiguous(folder, rules, tmp_path):
    model = load_pretrained(folder, rules=rules)
    other = tmp_path / "other" / "my_rules.py"
    other.parent.mkdir()
    other.write_text(rules.read_text())
    load_pretrained(folder, rules=other)
    with pytest.raises(CheckpointError, match="a name that several files have: give rules"):
        save_pretrained(model, tmp_path / "out")
    save_pretrained(model, tmp_path / "out", rules=rules)
