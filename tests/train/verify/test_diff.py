"""Run comparison: the first difference between runs is found, and equal runs compare equal."""

import dataclasses
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import TINY

from jaxllm.checkpointing.orbax_layout import METADATA_FILE, list_steps
from jaxllm.cli import main
from jaxllm.errors import CheckpointError
from jaxllm.train import ConfigError, TrainConfig, train
from jaxllm.train.checkpoint_arrays import open_step
from jaxllm.train.data.documents import DataConfig
from jaxllm.train.mesh import MeshConfig
from jaxllm.train.optimizers.config import OptimizerConfig
from jaxllm.train.optimizers.schedule_config import PhaseConfig
from jaxllm.train.settings.logging import LoggingConfig
from jaxllm.train.verify.diff import diff_runs
from jaxllm.train.verify.diff_table import headline

STEPS, SAVED, CHANGED = 6, 3, 4  # the learning rate changes at step CHANGED + 1


def phases(*rates: float) -> OptimizerConfig:
    stops = (CHANGED, STEPS)
    return OptimizerConfig(
        phases=tuple(
            PhaseConfig(stop=stop, learning_rate=rate, final_learning_rate=rate)
            for stop, rate in zip(stops, rates, strict=True)
        )
    )


class Runs(dict[str, Path]):
    """The folders of runs by name, each trained when it is first asked for."""

    def __init__(self, folder: Path, base: TrainConfig, changes: dict[str, dict]):
        self.folder, self.base, self.changes = folder, base, changes

    def __missing__(self, name: str) -> Path:
        self[name] = self.folder / name
        train(dataclasses.replace(self.base, output=str(self[name]), **self.changes[name]))
        return self[name]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    """A base run, a repetition, and runs with one change each."""
    folder = tmp_path_factory.mktemp("runs")
    words = random.Random(0).choices(["the ", "mesh ", "is ", "a ", "shape. "], k=600)
    (folder / "text.txt").write_text("".join(words))
    (folder / "other.txt").write_text("".join(reversed(words)))
    base = TrainConfig(
        output=str(folder / "base"),
        steps=STEPS,
        batch_size=8,
        seq_len=16,
        model=dataclasses.replace(TINY, vocab_size=256, num_layers=2),
        data=DataConfig(text=(str(folder / "text.txt"),), held_out=0.1),
        optimizer=phases(1e-2, 1e-2),
        mesh=MeshConfig(data=8),
        save_every=SAVED,
        eval_every=STEPS,
        keep=9,
        logging=LoggingConfig(tensorboard=False),
    )
    other_text = dataclasses.replace(base.data, text=(str(folder / "other.txt"),))
    changes = {
        "base": {},
        "again": {"logging": LoggingConfig(every=3, tensorboard=False), "keep": 8},
        "seed": {"seed": 1, "steps": CHANGED},
        "rate": {"optimizer": phases(1e-2, 5e-3)},
        "text": {"data": other_text, "steps": CHANGED},
    }
    return Runs(folder, base, changes)


@pytest.mark.exhaustive
def test_a_repeated_run_has_no_differences(runs):
    found = diff_runs(runs["base"], runs["again"])
    assert found.same
    assert {field.name for field in found.config} == {"output", "logging.every", "keep"}
    assert all(field.is_free for field in found.config)
    assert found.checkpoints == (3, 6)
    assert (found.metrics, found.arrays, found.data) == ((), (), ())
    assert headline(found) == "The runs are the same up to step 6; checkpoints compared: 3, 6."


@pytest.mark.exhaustive
def test_another_seed_differs_from_step_0(runs):
    found = diff_runs(runs["base"], runs["seed"])
    assert not found.same
    steps = {metric.name: metric.step for metric in found.metrics if "/" not in metric.name}
    assert steps == {"held_out_loss": 0, "loss": 1, "grad_norm": 1}
    assert found.step == 0
    assert [field.name for field in found.config if not field.is_free] == ["steps", "seed"]
    assert found.last_steps == (STEPS, CHANGED)
    assert found.checkpoints == (SAVED,)
    assert {array.what for array in found.arrays} >= {"parameter", "first moment", "second moment"}


@pytest.mark.exhaustive
def test_a_changed_learning_rate_is_found_at_its_step(runs):
    found = diff_runs(runs["base"], runs["rate"])
    assert found.step == CHANGED + 1
    first = found.metrics[0]
    assert (first.name, first.step) == ("learning_rate", CHANGED + 1)
    assert first.relative == pytest.approx(0.5)
    assert first.steps == STEPS - CHANGED
    # The loss and gradient norm of a step belong to the weights before it, which are still equal.
    steps = {
        m.name: m.step for m in found.metrics if m.name != "held_out_loss" and "/" not in m.name
    }
    assert steps == {
        "learning_rate": CHANGED + 1,
        "loss": CHANGED + 2,
        "grad_norm": CHANGED + 2,
    }
    assert found.checkpoints == (3, 6)
    assert found.arrays[0].relative_l2 >= found.arrays[-1].relative_l2 > 0
    assert headline(found) == "The runs diverge at step 5: learning_rate."
    changed = [field.name for field in found.config if not field.is_free]
    assert changed == ["optimizer.phases"]


@pytest.mark.exhaustive
def test_other_text_is_found_by_its_fingerprint(runs):
    found = diff_runs(runs["base"], runs["text"])
    assert not found.same
    assert any("tokens" in field.name or "train" in field.name for field in found.data)


def test_a_resumed_run_has_no_differences(runs, tmp_path):
    shutil.copytree(runs["base"], tmp_path / "base")
    for step, path in list_steps(tmp_path / "base").items():
        if step > SAVED:
            shutil.rmtree(path)
    from jaxllm.train import load_config

    config = load_config(runs["base"] / "config.yaml")
    train(dataclasses.replace(config, output=str(tmp_path / "base")), resume=True)
    found = diff_runs(runs["base"], tmp_path / "base")
    assert found.same
    assert found.checkpoints == (3, 6)


def test_one_changed_number_in_a_checkpoint_is_found(runs, tmp_path, monkeypatch):
    """The checkpoints reveal it even though the logs are equal."""
    from jaxllm.train.verify import diff

    original = open_step

    def damaged(step):
        found = original(step)
        if step.is_relative_to(runs["again"]) and step.name == "3":
            key = ("second moment", "layers.1.mlp.up_proj.kernel")

            class Flipped:
                shape = found[key].shape

                def read(self, stored=found[key]):
                    x = np.array(stored.read())
                    x.flat[3] = np.nextafter(x.flat[3], 1)
                    return x

            found[key] = Flipped()
        return found

    monkeypatch.setattr(diff, "open_step", damaged)
    found = diff_runs(runs["base"], runs["again"])
    assert not found.same
    assert (found.step, found.metrics, found.checkpoints) == (3, (), (3,))
    [array] = found.arrays
    assert (array.what, array.name) == ("second moment", "layers.1.mlp.up_proj.kernel")
    assert 0 < array.relative_l2 < 1e-6
    assert headline(found) == (
        "The runs have diverged by step 3, most in layers.1.mlp.up_proj.kernel (second moment)."
    )


def test_open_step_unstacks_every_array(runs):
    found = open_step(list_steps(runs["base"])[STEPS])
    whats = [what for what, _ in found]
    assert whats.count("parameter") == whats.count("first moment") == whats.count("second moment")
    one, other = (found["parameter", f"layers.{i}.attn.q_proj.kernel"].read() for i in (0, 1))
    assert one.shape == other.shape == (32, 4, 16)
    assert not np.array_equal(one, other)


def test_folders_without_a_comparable_run_are_reported(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError) as error:
        diff_runs(tmp_path / "nowhere", tmp_path / "empty")
    first, second = str(error.value).splitlines()
    assert "nowhere is not a folder" in first
    assert "no config.yaml and no metrics.jsonl" in second
    shutil.copytree(runs["base"], tmp_path / "short")
    shutil.rmtree(tmp_path / "short" / "checkpoints")
    (tmp_path / "short" / "metrics.jsonl").write_text("")
    with pytest.raises(ConfigError, match="no step in common"):
        diff_runs(runs["base"], tmp_path / "short")


@pytest.mark.exhaustive
def test_the_exit_status_of_the_command_is_the_verdict(runs, capsys):
    assert main(["diff", str(runs["base"]), str(runs["again"])]) == 0
    assert "The runs are the same" in capsys.readouterr().out
    assert main(["diff", str(runs["base"]), str(runs["rate"]), "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert (data["same"], data["step"]) == (False, CHANGED + 1)
    assert main(["diff", "nowhere", str(runs["base"])]) == 2
    assert "nowhere is not a folder" in capsys.readouterr().err


def test_checkpoints_that_cannot_be_read_are_no_equal_ones(runs, tmp_path, monkeypatch):
    other = shutil.copytree(runs["base"], tmp_path / "other")
    [file] = (other / "checkpoints" / "3").glob(METADATA_FILE)
    metadata = json.loads(file.read_text())
    about = metadata["custom_metadata"]["jaxllm"]
    del about["data"], about["digests"]
    file.write_text(json.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"checkpoints/3:\n  data is missing"):
        diff_runs(runs["base"], other)
    original = Path.iterdir

    def refuse(path):
        if path == other / "checkpoints":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(PermissionError, match="other/checkpoints"):
        diff_runs(runs["base"], other)
