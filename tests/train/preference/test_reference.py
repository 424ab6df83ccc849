"""Runs with DPO: on a mesh, with the reference computed once or at each step, and resumed."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from tiers import examples
from tiny import TINY, random_model

from jaxllm.config import with_fields
from jaxllm.lora.config import LoraConfig
from jaxllm.params import named_parameters
from jaxllm.train import ConfigError, TrainConfig, train
from jaxllm.train.data import PreferencesConfig
from jaxllm.train.loss import DpoConfig, LossConfig
from jaxllm.train.mesh import MeshConfig
from jaxllm.train.monitoring.metrics import read_metrics
from jaxllm.train.optimizers.config import OptimizerConfig
from jaxllm.train.preference.reference import keeps_reference, needs_start, work_per_row

MODEL = with_fields(TINY, vocab_size=256, num_layers=2)
LORA = LoraConfig(rank=4, targets=("q_proj", "up_proj"), full=("lm_head",))


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("data") / "p.jsonl"
    records = [
        {"prompt": f"{n}? ", "chosen": "yes" * (1 + n % 2), "rejected": f"no {n}"}
        for n in range(40)
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    return str(path)


def run(folder, file, reference="each_step", lora=None, **changes) -> TrainConfig:
    return TrainConfig(
        **{"output": str(folder), "steps": 4, "batch_size": 8, "seq_len": 15, "eval_every": 2},
        init_from="somewhere",
        data=PreferencesConfig(preferences=(file,), held_out=0.3),
        loss=LossConfig(dpo=DpoConfig(beta=0.5, reference=reference)),
        optimizer=OptimizerConfig(learning_rate=0.01, lora=lora),
        **{"mesh": MeshConfig(data=8), **changes},
    )


def model():
    return random_model(vocab_size=256, num_layers=2)


def curve(folder, name="loss") -> list[float]:
    return [row[name] for row in read_metrics(folder / "metrics.jsonl") if name in row]


def parameters(result) -> dict[str, np.ndarray]:
    named = named_parameters(result.model).items()
    return {name: np.asarray(variable.get_value()) for name, variable in named}


@pytest.mark.parametrize(
    ("reference", "lora"),
    examples(
        [("once", None), ("each_step", None), ("once", LORA), ("each_step", LORA)], ("once", None)
    ),
    ids=str,
)
def test_a_mesh_and_a_reference_that_is_computed_once_change_nothing(
    reference, lora, file, tmp_path
):
    mesh = {"mesh": MeshConfig(data=2, fsdp=2, tensor=2), "accumulate": 2}
    first = train(run(tmp_path / "one", file, lora=lora), model())
    assert first.unit == "nats per preference"
    train(run(tmp_path / "other", file, reference, lora, **mesh), model())
    for metric in ("loss", "held_out_loss", "reward/margin"):
        found, expected = (curve(tmp_path / name, metric) for name in ("other", "one"))
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)
    losses = curve(tmp_path / "one")
    assert losses[0] == pytest.approx(np.log(2), abs=1e-5)
    assert losses[-1] < losses[0] - 0.05
    assert curve(tmp_path / "one", "reward/accuracy")[-1] > 0.5


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("reference", "lora"), [("each_step", None), ("once", None), ("each_step", LORA)], ids=str
)
def test_a_resumed_run_has_the_same_bits(reference, lora, file, tmp_path):
    whole = run(tmp_path / "whole", file, reference, lora, save_every=2)
    expected = train(whole, model())
    parts = dataclasses.replace(whole, output=str(tmp_path / "parts"))
    train(parts, model())
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "4")
    base = model() if needs_start(parts) else None
    found = parameters(train(parts, base, resume=True))
    for name, array in parameters(expected).items():
        np.testing.assert_array_equal(found[name], array)
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "4")
    if reference == "once":
        (tmp_path / "parts" / "reference.npz").unlink()
        with pytest.raises(ConfigError, match=r"reference\.npz: .* are gone"):
            train(parts, base, resume=True)
    else:
        other = random_model(seed=1, vocab_size=256, num_layers=2)
        with pytest.raises(ConfigError, match="are not those that"):
            train(parts, other, resume=True)


def test_what_a_run_needs_of_its_start(file, tmp_path):
    each, once = run(tmp_path, file), run(tmp_path, file, "once")
    with_lora = run(tmp_path, file, "once", LORA)
    assert [keeps_reference(config) for config in (each, once, with_lora)] == [True, False, False]
    assert [needs_start(config) for config in (each, once, with_lora)] == [True, False, True]
    assert work_per_row(each) == (2, pytest.approx(8 / 3))
    assert work_per_row(once) == (2, 2)


def test_settings_of_other_losses_are_refused(file, tmp_path):
    with pytest.raises(ValueError, match=r"loss\.z_loss=0\.1 is added to cross-entropies"):
        dataclasses.replace(run(tmp_path, file), loss=LossConfig(z_loss=0.1))
    with pytest.raises(ValueError, match=r"label_smoothing=0\.1 is of loss\.dpo\.name=robust"):
        DpoConfig(label_smoothing=0.1)
    with pytest.raises(ValueError, match=r"label_smoothing=0\.5 is not less than 0\.5"):
        DpoConfig(name="robust", label_smoothing=0.5)
