"""Training runs: outputs, rejected configs, and bitwise exact resume after an interruption."""

import dataclasses
import logging
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from kinds import CONFIGS
from orbax.checkpoint import v1 as ocp
from tiny import TINY, random_model, random_of, relative_l2

from jaxllm.checkpoint_origin import Origin
from jaxllm.config import NumericsConfig, with_fields
from jaxllm.errors import UserError
from jaxllm.interop import load_pretrained
from jaxllm.models import EncoderDecoder
from jaxllm.params import named_parameters, with_arrays
from jaxllm.train import ConfigError, TrainConfig, TrainResult, load_config, train
from jaxllm.train.config import save_config
from jaxllm.train.data.documents import DataConfig, load_corpus
from jaxllm.train.data.streams.windows import Windows
from jaxllm.train.data.tasks import TaskConfig
from jaxllm.train.loss import LossConfig
from jaxllm.train.mesh import MeshConfig
from jaxllm.train.monitoring.metrics import MetricLog, read_metrics, read_results
from jaxllm.train.objective import next_token_loss
from jaxllm.train.optimizers.config import OptimizerConfig
from jaxllm.train.optimizers.schedule import make_schedule
from jaxllm.train.restarts.stopping import Interrupted
from jaxllm.train.settings.logging import LoggingConfig

# The steps of the run; of its newest checkpoint and in its log when it is killed.
STEPS, SAVED, SEEN = 10, 4, 6
REPOSITORY = Path(__file__).parents[2]
TINY_BYTES = dataclasses.replace(TINY, vocab_size=256, num_layers=2)

# Logs step 6 and then waits to be killed.
WAITING_RUN = f"""
import sys, time
from jaxllm.train import load_config, train
from jaxllm.train.monitoring.metrics import MetricLog

def write_and_wait(log, step, numbers, write=MetricLog.write):
    write(log, step, numbers)
    if step == {SEEN}:
        time.sleep(600)

MetricLog.write = write_and_wait
train(load_config(sys.argv[1]))
"""


def write_text(file: Path, seed: int) -> str:
    """Writes words, which can be learned, in random order, which cannot."""
    words = ["the ", "mesh ", "is ", "a ", "shape ", "of ", "devices. "]
    file.write_text("".join(random.Random(seed).choices(words, k=900)))
    return str(file)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", 0)


@pytest.fixture(scope="module")
def make(text):
    """Builds the config of the run, with an output folder and changes."""

    def config(output: Path, **changes: object) -> TrainConfig:
        run = TrainConfig(
            output=str(output),
            steps=STEPS,
            batch_size=8,
            seq_len=16,
            model=TINY_BYTES,
            data=DataConfig(text=(text,), held_out=0.1),
            optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
            mesh=MeshConfig(fsdp=4, tensor=2),
            save_every=SAVED,
            eval_every=5,
            eval_batches=4,
            seed=3,
            logging=LoggingConfig(tensorboard=False),
        )
        return dataclasses.replace(run, **changes)

    return config


@pytest.fixture(scope="module")
def straight(make, tmp_path_factory) -> tuple[TrainConfig, TrainResult]:
    """An uninterrupted run."""
    config = make(tmp_path_factory.mktemp("straight") / "run")
    return config, train(config)


@pytest.fixture(scope="module")
def killed(make, tmp_path_factory) -> Path:
    """The folder of the same run, killed with SIGKILL after step 6; its checkpoint is step 4."""
    folder = tmp_path_factory.mktemp("killed")
    config = make(folder / "run")
    save_config(config, folder / "run.yaml")
    command = [sys.executable, "-c", WAITING_RUN, str(folder / "run.yaml")]
    log, metrics = folder / "stderr", folder / "run" / "metrics.jsonl"
    checkpoint = folder / "run" / "checkpoints" / str(SAVED) / "_CHECKPOINT_METADATA"
    with log.open("w") as stderr, subprocess.Popen(command, cwd=REPOSITORY, stderr=stderr) as run:
        try:
            deadline = time.monotonic() + 240
            while not (checkpoint.exists() and SEEN in steps_in(metrics)):
                assert run.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
        finally:
            os.kill(run.pid, signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL
    assert max(steps_in(metrics)) == SEEN
    return folder / "run"


@pytest.fixture
def interrupted(killed, tmp_path) -> Path:
    """A copy of the killed run, to be resumed."""
    return Path(shutil.copytree(killed, tmp_path / "run"))


def steps_in(metrics: Path) -> list[int]:
    return [record["step"] for record in read_results(metrics)] if metrics.exists() else []


def values(model) -> dict[str, np.ndarray]:
    return {name: np.asarray(v.get_value()) for name, v in named_parameters(model).items()}


def bits(model) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in values(model).items()}


def saved_steps(output: str | Path) -> list[int]:
    folders = (Path(output) / "checkpoints").glob("*/_CHECKPOINT_METADATA")
    return sorted(int(file.parent.name) for file in folders)


def saved_optimizer(output: str | Path) -> list[bytes]:
    """The moments and counts of a run's last checkpoint, as bytes."""
    step = Path(output) / "checkpoints" / str(STEPS)
    metadata = ocp.checkpointables_metadata(step).metadata["optimizer"]
    one_device = SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one_device), metadata
    )
    loaded = ocp.load_checkpointables(step, {"optimizer": target})
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(loaded)]


whole_loss = jax.jit(
    lambda model, batch: next_token_loss(model, batch, LossConfig(chunk_tokens=512))[0]
)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != ".lock"  # which a killed run leaves
    }


def test_a_run_writes_config_metrics_loss_plot_and_checkpoints(straight):
    config, result = straight
    folder = Path(config.output)
    assert {path.name for path in folder.iterdir()} == {
        *("config.yaml", "metrics.jsonl", "loss.png", "checkpoints"),
    }
    assert load_config(folder / "config.yaml") == config
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert saved_steps(folder) == [8, 10]  # the newest two
    records = read_results(folder / "metrics.jsonl")
    trained = [record for record in records if "loss" in record]
    assert [record["step"] for record in trained] == list(range(1, STEPS + 1))
    groups = ("attention", "embeddings", "head", "mlp", "norms")
    names = {"step", "loss", "grad_norm", "learning_rate", *(f"grad_norm/{g}" for g in groups)}
    assert all(record.keys() == names for record in trained)
    speeds = [r for r in read_metrics(folder / "metrics.jsonl") if "speed/tokens_per_s" in r]
    assert [record["step"] for record in speeds] == [10]
    assert 0 < speeds[0]["speed/goodput"] < 1
    assert [record["learning_rate"] for record in trained[:2]] == pytest.approx([0.005, 0.01])
    held_out = {r["step"]: r["held_out_loss"] for r in records if "held_out_loss" in r}
    assert {5, 10} <= held_out.keys()
    assert held_out[10] == result.held_out_loss
    assert held_out[10] < trained[0]["loss"] - 1  # it learns
    assert trained[0]["loss"] == pytest.approx(math.log(256), rel=0.05)


def test_the_returned_model_equals_the_last_checkpoint(straight):
    config, result = straight
    assert result.model.config == config.model
    assert bits(load_pretrained(config.output)) == bits(result.model)
    earlier = load_pretrained(Path(config.output) / "checkpoints" / "8")
    assert bits(earlier) != bits(result.model)
    assert earlier.config == config.model


@pytest.mark.exhaustive
def test_no_due_checkpoint_is_skipped(straight, killed, tmp_path, make):
    """Also if one is due before the last is on disk; each has the state of its own step."""
    config = make(tmp_path / "run", save_every=1, keep=99)
    train(config)
    assert saved_steps(config.output) == list(range(1, STEPS + 1))
    for step, folder in ((SAVED, killed), (STEPS, Path(straight[0].output))):
        ours, theirs = (Path(f) / "checkpoints" / str(step) for f in (config.output, folder))
        assert bits(load_pretrained(ours)) == bits(load_pretrained(theirs))


def test_the_held_out_loss_matches_a_direct_computation(straight):
    """Recomputed from the text, without batching or sharding, in nats per token."""
    config, result = straight
    corpus = load_corpus(config.data)
    windows = Windows(corpus.held_out.tokens, config.seq_len, corpus.held_out.starts)
    assert len(windows) <= config.eval_batches * config.batch_size
    batch = windows.take(range(len(windows)))
    alone = with_arrays(result.model, {n: jnp.asarray(v) for n, v in values(result.model).items()})
    total = whole_loss(alone, batch)
    expected = float(total) / batch["mask"].sum()
    assert result.held_out_loss == pytest.approx(expected, rel=1e-5)


def test_a_killed_and_resumed_run_is_bitwise_identical(straight, interrupted, make):
    config, result = straight
    assert saved_steps(interrupted) == [SAVED]
    resumed = train(make(interrupted), resume=True)
    assert bits(resumed.model) == bits(result.model)
    assert resumed.held_out_loss == result.held_out_loss
    moments = saved_optimizer(interrupted)
    assert moments == saved_optimizer(config.output)
    assert len(moments) > 2 * len(values(result.model))
    ours, theirs = (read_results(Path(f) / "metrics.jsonl") for f in (interrupted, config.output))
    assert ours == theirs
    assert (interrupted / "loss.png").exists()


@pytest.mark.exhaustive
def test_a_resumed_encoder_decoder_run_is_bitwise_identical(tmp_path):
    """With dropout, gradient accumulation and a task; the last checkpoint is deleted and redone."""
    model = with_fields(CONFIGS["encoder-decoder"], dropout=0.2)
    config = TrainConfig(
        output=str(tmp_path / "run"),
        steps=6,
        batch_size=16,
        seq_len=5,
        model=model,
        data=TaskConfig(task="copy"),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
        mesh=MeshConfig(fsdp=4, tensor=2),
        accumulate=2,
        save_every=3,
        eval_every=3,
        eval_batches=1,
        logging=LoggingConfig(tensorboard=False),
    )
    straight = train(config)
    copy = Path(shutil.copytree(tmp_path / "run", tmp_path / "copy"))
    shutil.rmtree(copy / "checkpoints" / "6")
    assert saved_steps(copy) == [3]
    resumed = train(dataclasses.replace(config, output=str(copy)), resume=True)
    assert bits(resumed.model) == bits(straight.model)
    assert bits(load_pretrained(copy)) == bits(straight.model)
    assert resumed.held_out_loss == straight.held_out_loss
    assert (resumed.unit, type(resumed.model)) == ("nats per token", EncoderDecoder)
    ours, theirs = (read_results(folder / "metrics.jsonl") for folder in (copy, tmp_path / "run"))
    assert ours == theirs
    other = dataclasses.replace(config, output=str(copy), data=TaskConfig(task="copy", seed=1))
    with pytest.raises(ConfigError, match=r"data\.seed: 0 in the checkpoint, 1 now") as caught:
        train(other, resume=True)
    assert "the data differ from those" in str(caught.value)


@pytest.mark.exhaustive
def test_resuming_on_another_mesh_stays_within_tolerance(straight, interrupted, make):
    config, result = straight
    resumed = train(
        make(interrupted, mesh=MeshConfig(data=8), logging=LoggingConfig(every=3)), resume=True
    )
    theirs = values(result.model)
    for name, ours in values(resumed.model).items():
        assert relative_l2(ours, theirs[name]) < 1e-5, name
    losses = [
        [record["loss"] for record in read_results(Path(f) / "metrics.jsonl") if "loss" in record]
        for f in (interrupted, config.output)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][:SAVED] == losses[1][:SAVED]


def test_resuming_a_complete_run_changes_nothing(straight, tmp_path, make):
    config, result = straight
    folder = Path(shutil.copytree(config.output, tmp_path / "run"))
    again = train(make(folder), resume=True)
    assert bits(again.model) == bits(result.model)
    assert read_results(folder / "metrics.jsonl") == read_results(
        Path(config.output) / "metrics.jsonl"
    )


def at_step(monkeypatch, step: int, action) -> None:
    """Does something when a step is logged, which is during the step after it."""
    write = MetricLog.write

    def write_and_act(log, number, numbers) -> None:
        write(log, number, numbers)
        if number == step and "loss" in numbers:
            action()

    monkeypatch.setattr(MetricLog, "write", write_and_act)


@pytest.mark.exhaustive
def test_sigterm_saves_and_the_run_continues_bit_for_bit(straight, make, tmp_path, monkeypatch):
    config = make(tmp_path / "run")
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
        stopped = train(config)
    assert (stopped.step, saved_steps(config.output)) == (6, [4, 6])
    resumed = train(config, resume=True)
    assert resumed.step == STEPS
    assert bits(resumed.model) == bits(straight[1].model)
    ours, theirs = (read_results(Path(f.output) / "metrics.jsonl") for f in (config, straight[0]))
    assert ours == theirs


def test_a_run_that_lost_its_lock_saves_nothing(make, tmp_path, monkeypatch):
    def check() -> None:
        raise UserError("another run took it")

    monkeypatch.setattr("jaxllm.train.loop.locked", lambda folder: nullcontext(check))
    with pytest.raises(UserError, match="another run took it"):
        train(make(tmp_path / "run"))
    assert saved_steps(str(tmp_path / "run")) == []


@pytest.mark.exhaustive
def test_a_run_interrupted_before_its_first_checkpoint_begins_again(
    straight, make, tmp_path, monkeypatch
):
    def interrupt() -> None:
        raise KeyboardInterrupt

    config = make(tmp_path / "run")
    with monkeypatch.context() as patch:
        at_step(patch, 2, interrupt)
        with pytest.raises(Interrupted, match="after step 3; nothing is saved yet; continue with"):
            train(config)
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
    result = train(config, resume=True)
    assert bits(result.model) == bits(straight[1].model)
    assert (tmp_path / "run" / "metrics.old.1.jsonl").exists()


def test_a_damaged_newest_checkpoint_is_kept_aside(straight, make, tmp_path, caplog):
    folder = Path(shutil.copytree(straight[0].output, tmp_path / "run"))
    files = (folder / "checkpoints" / str(STEPS)).rglob("d/*")
    largest = max(files, key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    (folder / "checkpoints" / "best").mkdir()  # foreign things that mean nothing
    (folder / "checkpoints" / "notes.txt").touch()
    (folder / "checkpoints" / "8" / "notes.txt").touch()
    with caplog.at_level(logging.INFO, "jaxllm"):
        resumed = train(make(folder), resume=True)
    assert [
        text for text in caplog.messages if "damaged" in text and "resuming from step 8" in text
    ]
    assert bits(resumed.model) == bits(straight[1].model)
    assert (folder / "aside" / str(STEPS)).is_dir()
    assert saved_steps(folder) == [8, STEPS]


@pytest.mark.exhaustive
def test_a_finished_run_is_extended_by_the_longer_schedule(straight, make, tmp_path, caplog):
    folder = Path(shutil.copytree(straight[0].output, tmp_path / "run"))
    longer = make(folder, steps=STEPS + 2)
    with caplog.at_level(logging.INFO, "jaxllm"):
        assert train(longer, resume=True).step == STEPS + 2
    rates = [r["learning_rate"] for r in read_results(folder / "metrics.jsonl") if "loss" in r]
    schedule = make_schedule(longer.optimizer, STEPS + 2)
    expected = [float(schedule(step)) for step in (STEPS, STEPS + 1)]
    assert rates[STEPS:] == pytest.approx(expected, rel=1e-5)  # in float32
    [line] = [text for text in caplog.messages if "extended from 10 to 12 steps" in text]
    assert f"it ended at {rates[STEPS - 1]:.3g}, is {rates[STEPS]:.3g} in the next step" in line


@pytest.mark.exhaustive
def test_a_folder_that_is_removed_ends_the_run_with_its_name(make, tmp_path, monkeypatch):
    config = make(tmp_path / "run")
    at_step(monkeypatch, 2, lambda: shutil.rmtree(config.output))
    with pytest.raises(
        UserError, match=r"run/checkpoints/4: the checkpoint of [\d,]+ bytes cannot"
    ):
        train(config)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_resuming_with_other_text_is_rejected(interrupted, make, text, tmp_path):
    before = contents(interrupted)
    elsewhere = write_text(tmp_path / "other.txt", 1)
    with pytest.raises(ConfigError, match=r"data\.text"):
        train(make(interrupted, data=DataConfig(text=(elsewhere,), held_out=0.1)), resume=True)
    original = Path(text).read_text()
    try:  # the same file name with other content
        Path(text).write_text(original[:-20] + "a" + original[-20:])
        with pytest.raises(ConfigError, match="the data differ from those"):
            train(make(interrupted), resume=True)
    finally:
        Path(text).write_text(original)
    assert contents(interrupted) == before


def test_resuming_with_a_changed_config_reports_every_change(interrupted, make):
    before = contents(interrupted)
    changed = make(
        interrupted,
        steps=20,
        optimizer=OptimizerConfig(learning_rate=2e-2, warmup_steps=2),
        model=dataclasses.replace(TINY_BYTES, num_layers=3),
    )
    with pytest.raises(ConfigError) as caught:
        train(changed, resume=True)
    lines = str(caught.value).splitlines()
    for name in ("steps: 10", "optimizer.learning_rate: 0.01", "model.num_layers: 2"):
        assert sum(f"{name} in the checkpoint" in line for line in lines) == 1, name
    assert len(lines) == 3
    assert contents(interrupted) == before


def test_a_new_run_never_overwrites_another(interrupted, make):
    before = contents(interrupted)
    with pytest.raises(ConfigError, match=r"already holds a run of 4 steps; use --resume"):
        train(make(interrupted))
    assert contents(interrupted) == before


def test_a_nonfinite_loss_stops_the_run(tmp_path, make):
    """The log contains the failing step; its state is not saved."""
    model = random_model(vocab_size=256, num_layers=2)
    model.final_norm.scale.set_value(model.final_norm.scale[...].at[3].set(jnp.nan))
    config = make(tmp_path / "run", model=None, init_from="somewhere", save_every=1)
    with pytest.raises(FloatingPointError, match=r"step 1 has non-finite metrics .*loss.*nan"):
        train(config, model)
    trained = [r for r in read_results(tmp_path / "run" / "metrics.jsonl") if "loss" in r]
    assert [record["step"] for record in trained] == [1]
    assert math.isnan(trained[0]["loss"])
    assert saved_steps(tmp_path / "run") == []


@pytest.mark.exhaustive
def test_training_given_weights_with_bfloat16_activations(tmp_path, make, text):
    """The parameters stay float32, and the checkpoint keeps their origin."""
    model = random_model(vocab_size=256, num_layers=2)
    model.origin = Origin(family="llama", config="{}", layout="{}", directory="/somewhere")
    before = values(model)
    config = make(
        tmp_path / "run",
        model=None,
        init_from="somewhere",
        dtype="bfloat16",
        remat="full",
        steps=1,
        optimizer=OptimizerConfig(learning_rate=1e-6),
        accumulate=2,
        mesh=MeshConfig(data=4, tensor=2),
    )
    result = train(config, model)
    assert result.model.config == with_fields(
        TINY_BYTES,
        {"numerics.dtype": "bfloat16"},
        remat="full",
        max_len=result.model.config.max_len,
    )
    loaded = load_pretrained(tmp_path / "run")
    assert loaded.origin.family == "llama"
    for name, value in values(loaded).items():
        assert value.dtype == np.float32
        assert 0 < relative_l2(value, before[name]) < 1e-3, name
    corpus = load_corpus(config.data)
    windows = Windows(corpus.held_out.tokens, config.seq_len, corpus.held_out.starts)
    batch = windows.take(range(len(windows)))
    exact = random_model(vocab_size=256, num_layers=2)
    total = whole_loss(exact, batch)
    assert result.held_out_loss == pytest.approx(float(total) / batch["mask"].sum(), rel=2e-2)


def test_unsuitable_weights_are_rejected(tmp_path, make):
    config = make(tmp_path / "run", model=None, init_from="somewhere")
    for dtype in ("bfloat16", "float16"):
        with pytest.raises(ConfigError, match=rf"{dtype}.*dtype='float32'"):
            train(
                config,
                random_model(
                    vocab_size=256, num_layers=2, numerics=NumericsConfig(param_dtype=dtype)
                ),
            )
    with pytest.raises(ConfigError, match=r"256 tokens.*vocab_size is 96"):
        train(config, random_model(num_layers=2))
    with pytest.raises(ConfigError, match=r"text trains a Decoder, but .* is EncoderDecoder"):
        train(config, random_of(CONFIGS["encoder-decoder"]))
    with pytest.raises(ConfigError, match="init_from"):
        train(config)
    assert contents(tmp_path / "run") == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh": MeshConfig(fsdp=4)}, r"fsdp=4.* needs 4 devices, but there are 8"),
        ({"accumulate": 4}, r"2 sequences is not divisible .* 4 devices"),
        ({"data": DataConfig(text=("nothing.txt",))}, r"no file matches 'nothing\.txt'"),
        ({"seq_len": 10000}, r"batch_size=8, but there are only 1 training examples"),
        ({"data": DataConfig(tokenizer="nowhere")}, r"nowhere"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_config_that_does_not_fit_is_rejected_before_anything_is_written(
    changes, message, tmp_path, make
):
    with pytest.raises(ConfigError, match=message):
        train(make(tmp_path / "run", **changes))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert not (tmp_path / "run" / "config.yaml").exists()
