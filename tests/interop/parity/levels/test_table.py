"""The table of levels: a level added here is compared, recorded, rendered and on the CLI."""

import dataclasses
import io
import json

import pytest
from rich.console import Console
from tiny import random_model

from jaxllm.cli import main
from jaxllm.interop.parity import check_checkpoint, compare
from jaxllm.interop.parity.golden import check_pack, record_checkpoint
from jaxllm.interop.parity.levels.level import Level, Stage
from jaxllm.interop.parity.levels.sides import JaxSide
from jaxllm.interop.parity.levels.table import (
    LEVELS,
    from_causes_to_effects,
    levels_of,
    levels_without_computation,
    not_compared,
    select_levels,
    stages_of,
)
from jaxllm.interop.parity.recording.pack import read_pack
from jaxllm.interop.parity.report.rows import TensorResult

STATED = ["weights", "config"]


def sum_of(model) -> float:
    return float(abs(model.embed.embedding[...]).sum())


def sum_of_reference(reference) -> float:
    return float(reference.get_input_embeddings().weight.detach().abs().sum())


def row(ours: float, theirs: float) -> list[TensorResult]:
    error = abs(ours - theirs) / theirs
    return [TensorResult("embed", "embedding", "sum", error, 1e-7, 1e-5)]


MADE_UP = Level(
    name="sums",
    stage=Stage(
        name="totals",
        compare=lambda pair: row(sum_of(pair.model), sum_of_reference(pair.reference)),
        record=lambda pair: {"embed": sum_of_reference(pair.reference)},
        check=lambda recorded, ours: row(sum_of(ours.model), recorded["embed"]),
    ),
    noun="sums",
    title="Sums of embeddings",
    caption="Of magnitudes.",
)


@pytest.fixture(autouse=True)
def sums(monkeypatch):
    """Adds the level `sums` to the table."""
    monkeypatch.setitem(LEVELS, "sums", MADE_UP)


@pytest.fixture
def broken(pair):
    """A JAX model with doubled embeddings."""
    _, model = pair
    graph = random_model(num_layers=2)
    graph.embed.embedding[...] = 2 * model.embed.embedding[...]
    return graph


@pytest.fixture(scope="module")
def folder(pair, tmp_path_factory):
    """A checkpoint of the reference."""
    path = tmp_path_factory.mktemp("made") / "llama"
    pair[0].save_pretrained(path)
    return path


def shown(report) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(report.table())
    return console.export_text()


def test_the_added_level_is_compared(pair, short):
    report = compare(*pair, short, levels=("weights", "sums"))
    assert report.verdicts == {"weights": True, "sums": True}
    assert len(report.rows["sums"]) == 1


def test_a_failure_at_the_added_level_is_in_every_rendering(pair, broken, short, tmp_path):
    report = compare(pair[0], broken, short, levels=("sums",))
    assert report.verdicts == {"sums": False}
    assert report.first_divergence is report.rows["sums"][0]
    data = json.loads(json.dumps(report.to_json()))
    assert [(x["what"], x["ok"]) for x in data["sums"]] == [("sum", False)]
    assert data["first_divergence"] == data["sums"][0]
    report.write_html(tmp_path / "parity.html")
    page = (tmp_path / "parity.html").read_text()
    for text in (shown(report), page):
        assert "Parity is broken" in text
        assert "1 sums, 1 differ" in text
        assert "the sum of embed.embedding" in text
    assert MADE_UP.title in page
    assert MADE_UP.caption in page


def test_the_added_level_is_recorded_and_checked(folder, broken, tmp_path):
    record_checkpoint(folder, tmp_path / "pack", levels=("sums",))
    recorded = read_pack(tmp_path / "pack")
    assert recorded["levels"] == ["sums"]
    assert recorded["totals"].keys() == {"embed"}
    assert check_pack(tmp_path / "pack", folder).verdicts == {"sums": True}
    wrong = MADE_UP.stage.check(recorded["totals"], JaxSide(model=broken, levels=("sums",)))
    assert not wrong[0].ok


def test_the_command_line_knows_the_added_level(folder, tmp_path, capsys):
    command = ["parity", str(folder), "--output", str(tmp_path), "--json", "--levels", "sums"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["verdicts"] == {"sums": True}
    assert "sums" in help_of(["parity", "--help"], capsys)
    pack = str(tmp_path / "pack")
    assert main(["parity", "record", str(folder), "--output", pack, "--levels", "sums"]) == 0
    checked = ["parity", "check", pack, str(folder), "--levels", "sums"]
    assert main([*checked, "--output", str(tmp_path)]) == 0
    assert "Parity holds" in capsys.readouterr().out


def help_of(command, capsys) -> str:
    with pytest.raises(SystemExit):
        main(command)
    return capsys.readouterr().out


def test_the_added_level_is_compared_by_default(folder, monkeypatch):
    for name in set(LEVELS) - {"config", "sums"}:
        monkeypatch.setitem(LEVELS, name, dataclasses.replace(LEVELS[name], by_default=False))
    assert check_checkpoint(folder).verdicts.keys() == {"config", "sums"}


def test_the_added_level_is_not_judged_if_sizes_differ(pair, short):
    report = compare(pair[0], random_model(num_layers=2, mlp_dim=40), short, levels=("sums",))
    assert report.verdicts == {"sums": False}
    assert report.unjudged == ("sums",)
    assert "not compared" in shown(report)
    assert report.rows["config"]


def test_causes_come_before_their_effects():
    order = [level.name for level in from_causes_to_effects()]
    assert order[:4] == ["config", "weights", "layers", "logits"]
    assert sorted(order) == sorted(LEVELS)
    for level in LEVELS.values():
        assert all(order.index(cause) < order.index(level.name) for cause in level.causes)


def test_levels_that_share_a_stage_run_it_once():
    assert [stage.name for stage in stages_of(LEVELS)] == [
        *("weights", "config", "forward", "training", "generate", "totals")
    ]
    assert [stage.name for stage in stages_of(("layers", "logits"))] == ["forward"]
    assert levels_without_computation() == STATED


def test_a_decoder_has_all_levels():
    assert levels_of(random_model()) == tuple(LEVELS)
    assert LEVELS["curve"].by_default is False


def test_levels_that_are_not_compared_have_a_reason():
    others = not_compared(random_model(), ("weights", "config", "sums"), is_default=True)
    assert others.pop("curve").startswith("not asked for, since it takes as long as")
    assert set(others.values()) == {"not asked for"}
    narrow = random_model({"numerics.dtype": "bfloat16"})
    others = not_compared(narrow, levels_of(narrow), is_default=True)
    assert others == dict.fromkeys(
        ("gradients", "step", "curve", "generate"), "compared in float32 alone"
    )
    assert not not_compared(random_model(), tuple(LEVELS), is_default=False)


def test_a_report_names_the_levels_that_it_lacks(pair, folder, short, tmp_path):
    report = compare(*pair, short, levels=("weights", "sums"))
    assert set(report.not_compared) == set(LEVELS) - {"weights", "sums"}
    assert "Levels not compared: config, logits," in " ".join(shown(report).split())
    record_checkpoint(folder, tmp_path / "pack", levels=("config", "sums"))
    report = check_pack(tmp_path / "pack", folder, levels=("sums",))
    assert report.not_compared["config"] == "not asked for"
    assert report.not_compared["weights"] == "not recorded"
    report = check_checkpoint(folder, levels=("sums",), dtype="bfloat16")
    assert report.not_compared["step"] == "compared in float32 alone"


def test_unknown_levels_are_rejected():
    assert select_levels(None, ("a", "b")) == ("a", "b")
    assert select_levels(["b"], ("a", "b")) == ["b"]
    for wrong in ([], ["a", "c"]):
        with pytest.raises(ValueError, match=r"levels=.* choose at least one of a, b"):
            select_levels(wrong, ("a", "b"))
