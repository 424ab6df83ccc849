"""Golden packs: recording and checking gives the same verdicts as comparing, from a sample."""

import json
import shutil
from contextlib import suppress

import hf_cases
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxllm.cli import main
from jaxllm.config import MOVED
from jaxllm.errors import OTHER_VERSION, UserError
from jaxllm.interop import CheckpointError
from jaxllm.interop.parity.execution.recipe import Recipe
from jaxllm.interop.parity.execution.simulated_rounding import DRAWS
from jaxllm.interop.parity.golden import check_pack, record_checkpoint
from jaxllm.interop.parity.recording.pack import read_pack, write_pack
from jaxllm.interop.parity.render import html
from jaxllm.interop.parity.render.notes import notes, unclear_note
from jaxllm.interop.parity.render.sentences import compared, hint
from jaxllm.numerics import judgement
from jaxllm.train import make_mesh

LENGTH = 300
COMPUTED = ("logits", "layers", "gradients", "step", "curve", "generate")


def saved(name: str, folder):
    hf_cases.CASES[name].build().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return saved("llama", tmp_path_factory.mktemp("llama") / "llama")


@pytest.fixture(scope="module")
def pack(llama, tmp_path_factory):
    """A pack with all levels of a Llama at few positions."""
    folder = tmp_path_factory.mktemp("packs") / "llama"
    num_bytes = record_checkpoint(
        llama, folder, num_tokens=LENGTH, positions=16, recipe=Recipe(steps=3)
    )
    assert num_bytes == sum(file.stat().st_size for file in folder.iterdir())
    return folder


@pytest.fixture(scope="module")
def whole(llama, tmp_path_factory):
    """A pack with the forward pass at every position."""
    folder = tmp_path_factory.mktemp("packs") / "whole"
    record_checkpoint(llama, folder, num_tokens=LENGTH, positions=None, levels=("layers",))
    return folder


@pytest.fixture
def copy(llama, tmp_path):
    """A copy of the checkpoint for a test to damage."""
    return shutil.copytree(llama, tmp_path / "llama")


def change_tensor(folder, name, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = change(tensors[name])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def change_config(folder, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_the_recorded_checkpoint_passes(pack, llama):
    levels = ["weights", "config", "logits", "gradients"]
    report = check_pack(pack, llama, levels=levels)
    assert report.ok, report.first_divergence
    assert list(report.verdicts) == levels
    assert all(report.rows[level] for level in report.verdicts)
    assert {"torch", "transformers", "jax"} <= report.versions.keys()
    # The noise floors come from the pack, so they cannot be zero.
    assert all(row.floor > 0 for row in report.gradients if row.what == "gradient")
    # At most 16 positions of each of two rows, the last of which is padded.
    assert 16 < report.tokens <= 32
    assert [bucket.start for bucket in report.buckets] == [0, 4, 32, 128]


@pytest.mark.exhaustive
def test_the_recorded_checkpoint_passes_every_level(pack, llama):
    report = check_pack(pack, llama)
    assert report.ok, report.first_divergence
    assert list(report.verdicts) == ["weights", "config", *COMPUTED]
    assert all(report.rows[level] for level in report.verdicts)
    assert max(row.measured for row in report.curve) > 0


@pytest.mark.exhaustive
def test_a_pack_has_an_entry_for_each_stage(pack, whole):
    always = {"version", "subject", "levels", "inputs", "config", "weights"}
    data = read_pack(pack)
    assert data.keys() == {*always, "forward", "training", "generate"}
    assert read_pack(whole).keys() == {*always, "forward"}
    kept = {"batches", "later", "constant", "recipe", "truth", "runs", "moved", "routers"}
    assert data["training"].keys() == kept
    assert {"prompts", "greedy", "beams", "ties"} <= data["generate"].keys()
    assert {"inputs", "arrays", "free", "forced", "sample", "of_source"} <= data["forward"].keys()


@pytest.mark.exhaustive
def test_a_checkpoint_passes_on_a_mesh_of_eight_devices(pack, llama):
    levels = ("weights", "logits")
    report = check_pack(pack, llama, mesh=make_mesh(fsdp=4, tensor=2), levels=levels)
    assert report.ok, report.first_divergence
    assert tuple(report.verdicts) == levels


def test_a_damaged_weight_is_named(pack, copy):
    name = "model.layers.1.mlp.down_proj.weight"

    def flip(weight):
        weight = weight.copy()
        weight[3, 5] = np.nextafter(weight[3, 5], np.float32(1))
        return weight

    change_tensor(copy, name, flip)
    report = check_pack(pack, copy, levels=("weights", "config", "logits"))
    [wrong] = [row for row in report.weights if not row.ok]
    assert (wrong.path, wrong.parameter) == ("layers.1.mlp.down_proj", "kernel")
    assert wrong.differing_bits is None  # a digest does not say in how many bits
    assert "<code>layers.1.mlp.down_proj.kernel</code> differs (digest)." in html.render(report)
    assert f"{len(report.weights)} tensors, 1 differ (digest)" in compared("weights", report)
    assert report.digests["weights of the model"] != report.digests["weights of the reference"]
    assert report.digests["config of the model"] == report.digests["config of the reference"]
    assert report.first_divergence is wrong
    assert report.verdicts == {"weights": False, "config": True, "logits": True}


def test_weights_that_are_not_numbers_are_named(pack, copy):
    change_tensor(copy, "model.norm.weight", lambda weight: np.full_like(weight, np.nan))
    report = check_pack(pack, copy, levels=("weights",))
    assert any(note.endswith(" in final_norm.scale.") for note in notes(report))


def test_a_pack_with_the_old_name_of_labels_is_read(pack, llama, tmp_path):
    data = read_pack(pack)
    data["inputs"]["wanted"] = np.zeros((1, 2), np.float32)
    write_pack(data, tmp_path / "old")
    with pytest.raises(UserError, match="labels is given, which a Decoder does not take"):
        check_pack(tmp_path / "old", llama, levels=("weights",))
    data["inputs"]["desired"] = data["inputs"].pop("wanted")
    write_pack(data, tmp_path / "wrong")
    with pytest.raises(CheckpointError, match=r"target and some of \['labels', 'source', "):
        check_pack(tmp_path / "wrong", llama, levels=("weights",))


@pytest.mark.exhaustive
def test_the_effect_of_a_damaged_weight_is_found_in_a_sample(pack, whole, copy):
    change_tensor(copy, "model.layers.1.self_attn.v_proj.weight", lambda w: w * np.float32(1.001))
    for folder in (pack, whole):
        report = check_pack(folder, copy, levels=("layers",))
        assert not report.ok
        assert report.first_divergence.path == "layers.1.attn.v_proj"
    report = check_pack(pack, copy, levels=("gradients",))
    assert not report.verdicts["gradients"]


def test_what_the_draws_of_a_pack_cannot_decide_is_said(pack, copy, monkeypatch):
    change_tensor(copy, "model.layers.0.mlp.up_proj.weight", lambda x: x * np.float32(1 + 2**-15))
    assert not check_pack(pack, copy, levels=["layers"]).ok
    monkeypatch.setattr(judgement, "fiducial_factor", lambda *given: 1e6)
    report = check_pack(pack, copy, levels=["layers"])
    suspects = [row for row in report.taps if row.is_suspect]
    assert {row.verdict for row in suspects} == {"cannot tell"}
    assert report.ok
    assert "more draws" in unclear_note(report)
    assert not check_pack(pack, copy, levels=["weights", "layers"]).ok


def test_a_pack_with_old_config_field_names_passes(pack, llama, tmp_path):
    data, old = read_pack(pack), {new: old for old, new in MOVED.items()}
    fields, problems = data["config"]
    assert "norms.eps" in fields
    data["config"] = [{old.get(name, name): text for name, text in fields.items()}, problems]
    write_pack(data, tmp_path / "pack")
    report = check_pack(tmp_path / "pack", llama, levels=("config",))
    assert report.ok, report.first_divergence
    assert len(report.config) == len(fields)


def test_a_wrong_config_field_is_named(pack, copy):
    def theta(config):
        config["rope_parameters"]["rope_theta"] *= 1.02

    change_config(copy, theta)
    report = check_pack(pack, copy, levels=("config", "layers"))
    assert [row.path for row in report.config if not row.ok] == ["config.rope.theta"]
    # A wrong theta shows at late positions, some of which are in the sample.
    assert report.verdicts == {"config": False, "layers": False}
    assert report.rows["layers"][0].ok


def test_a_model_of_other_sizes_is_reported(pack, tmp_path):
    narrow = hf_cases.Case("Llama", {"intermediate_size": 40}).build()
    narrow.save_pretrained(tmp_path / "narrow")
    report = check_pack(pack, tmp_path / "narrow")
    assert not any(report.verdicts.values())
    assert set(report.unjudged) == set(COMPUTED)
    assert "config.mlp_dim" in {row.path for row in report.config if not row.ok}
    remarks = {row.path: row.remark for row in report.weights}
    assert "in the reference, " in remarks["layers.0.mlp.gate_proj"]
    assert remarks["layers.0.attn.q_proj"] == ""


@pytest.mark.exhaustive
def test_full_recordings_give_each_activation_its_own_error(whole, llama):
    report = check_pack(whole, llama)
    assert report.ok, report.first_divergence
    assert all(row.forced is not None for row in report.taps)


@pytest.mark.exhaustive
def test_recordings_give_hints_and_sampled_ones_say_what_gives_more(pack, whole, copy):
    change_config(copy, lambda config: config.update(rms_norm_eps=3e-2))
    report = check_pack(whole, copy, levels=("layers",))
    assert not report.ok
    assert "eps" in hint(report)
    sampled = check_pack(pack, copy, levels=("layers",))
    assert not sampled.ok
    assert "eps" in hint(sampled)
    assert any("--positions all" in note for note in notes(sampled))


@pytest.mark.exhaustive
def test_router_logits_are_recorded(tmp_path):
    folder = saved("mixtral", tmp_path / "mixtral")
    record_checkpoint(
        folder,
        tmp_path / "pack",
        num_tokens=LENGTH,
        batch_size=1,
        positions=8,
        levels=("layers", "logits"),
    )
    report = check_pack(tmp_path / "pack", folder)
    assert report.ok, report.first_divergence
    assert any(row.path.endswith(".router") for row in report.taps)
    assert check_pack(tmp_path / "pack", folder, levels=("logits",)).ok
    routers = read_pack(tmp_path / "pack")["forward"]["routers"]
    assert all(len(others) == DRAWS for others in routers.values())
    assert routers


def test_levels_that_were_not_recorded_are_rejected(whole, llama):
    with pytest.raises(ValueError, match=r"gradients.* one of layers, which are recorded in"):
        check_pack(whole, llama, levels=("gradients",))
    with pytest.raises(ValueError, match="choose at least one of weights, config"):
        record_checkpoint(llama, whole.parent / "new", levels=("everything",))
    assert not (whole.parent / "new").exists()


def test_folders_that_are_not_packs_are_rejected(pack, llama, tmp_path, capsys):
    with pytest.raises(CheckpointError, match=r"no pack\.json and no arrays\.safetensors"):
        check_pack(tmp_path, llama)
    with pytest.raises(CheckpointError, match="exists; choose a new folder"):
        record_checkpoint(llama, pack, levels=("config",))
    damaged = shutil.copytree(pack, tmp_path / "damaged")
    whole = (damaged / "arrays.safetensors").read_bytes()
    (damaged / "arrays.safetensors").write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="damaged is damaged"):
        check_pack(damaged, llama)
    assert main(["parity", "check", str(tmp_path), str(llama)]) == 1
    assert "is not a pack" in capsys.readouterr().err


def test_a_pack_of_another_version_is_refused_with_every_problem(llama, tmp_path):
    write_pack(
        {"subject": 1, "levels": ["layers", "speed"], "weights": {}, "config": {}, "forward": []},
        tmp_path / "pack",
    )
    with pytest.raises(CheckpointError, match="pack:\n") as error:
        check_pack(tmp_path / "pack", llama)
    *problems, last = error.value.problems
    assert last == OTHER_VERSION
    expected = ("subject is 1", "level 'speed' is unknown", "inputs is missing", "config is {}")
    for problem, start in zip(problems, (*expected, "forward is []"), strict=True):
        assert problem.startswith(start)


@pytest.mark.cases(2)
@pytest.mark.parametrize("missing", ["subject", "levels", "inputs", "config", "weights", "forward"])
def test_a_pack_without_an_entry_is_refused(whole, llama, tmp_path, missing):
    data = read_pack(whole)
    del data[missing]
    write_pack(data, tmp_path / "pack")
    with pytest.raises(CheckpointError, match=f"{missing} is missing"):
        check_pack(tmp_path / "pack", llama)


def parts_of(data, path=()):
    """Yields the path of every dictionary, list, number and text within the data of a pack."""
    yield path
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data[:2]):
            yield from parts_of(value, (*path, key))


@pytest.mark.exhaustive
@pytest.mark.parametrize("count", [4, pytest.param(40, marks=pytest.mark.campaign)])
def test_packs_with_missing_or_mistyped_parts_are_refused_or_read(whole, llama, count, tmp_path):
    """Parts in all places of the pack are missing or a text; no other error is raised."""
    paths = [path for path in parts_of(read_pack(whole)) if path]
    assert len(paths) >= count
    for number, path in enumerate(paths[:: len(paths) // count]):
        for change in ("remove", "text"):
            data = read_pack(whole)
            parent = data
            for key in path[:-1]:
                parent = parent[key]
            if change == "remove":
                del parent[path[-1]]
            else:
                parent[path[-1]] = "a text"
            pack = tmp_path / f"{number}-{change}"
            write_pack(data, pack)
            with suppress(UserError):
                check_pack(pack, llama)


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["table", "json"])
def test_record_and_check_commands(llama, tmp_path, capsys, options):
    pack, levels = str(tmp_path / "pack"), ["--levels", "weights", "config"]
    assert main(["parity", "record", str(llama), "--output", pack, *levels]) == 0
    assert pack in capsys.readouterr().out
    report = ["--output", str(tmp_path / "report")]
    assert main(["parity", "check", pack, str(llama), *report, *options]) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["ok"] if options else "Parity holds" in out
    assert (tmp_path / "report" / "parity.html").is_file()
    assert jax.sharding.get_abstract_mesh().empty
