"""Every kind of model learns: the runs in configs/ reach the loss stated in their header.

They run on a single device, as a user would run them, in a process of their own.
"""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import examples

from jaxllm.cli import main
from jaxllm.interop import load_pretrained
from jaxllm.models import build_abstract
from jaxllm.train import load_config, train
from jaxllm.train.data.documents import load_corpus
from jaxllm.train.mesh import MeshConfig
from jaxllm.train.monitoring.metrics import read_results
from jaxllm.train.settings.logging import LoggingConfig

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = [
    *("tlama", "llm", "nima_gpt", "nima_transformer"),
    *("components_regression", "components_autoregressive", "components_encoder_decoder"),
]
SCRIPT = """
import dataclasses, sys
from jaxllm.train import load_config, train
from jaxllm.train.data.vectors import VectorsConfig
folder, shuffled, *paths = sys.argv[1:]
for path in paths:
    config = load_config(path, ["--logging.tensorboard", "false"])
    train(dataclasses.replace(config, output=f"{folder}/{config.output}"))
    if config.output == "runs/components_regression":  # control: shuffled targets
        data = VectorsConfig(vectors=shuffled, held_out=0.1)
        train(dataclasses.replace(config, output=f"{folder}/shuffled", data=data))
"""


def rows_of(name: str, count: int) -> dict[str, np.ndarray]:
    """The first held-out examples of a run."""
    config = load_config(CONFIGS / f"{name}.yaml")
    examples = config.data.load(build_abstract(config.model), config.seq_len)
    return examples.held_out.take(np.arange(count))


QUICK = "components_regression"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder with the outputs of all runs."""
    return train_configs(NAMES, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def quick_folder(tmp_path_factory) -> Path:
    """The folder with the output of the quickest run."""
    return train_configs([QUICK], tmp_path_factory.mktemp("run"))


def train_configs(names: list[str], folder: Path) -> Path:
    """Trains these configs, and the control with shuffled targets, in one process."""
    rows = rows_of("components_regression", 1000)
    targets = np.random.default_rng(0).permutation(rows["targets"])
    np.savez(folder / "shuffled.npz", inputs=rows["inputs"], targets=targets)
    paths = [str(CONFIGS / f"{name}.yaml") for name in names]
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(folder / "shuffled.npz"), *paths],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        check=True,
    )
    return folder


def held_out(run: Path) -> list[float]:
    """The held-out losses, from before the first step to the last step."""
    records = read_results(run / "metrics.jsonl")
    return [record["held_out_loss"] for record in records if "held_out_loss" in record]


def stated(name: str) -> float:
    """The held-out loss that the header of a config promises."""
    header = (CONFIGS / f"{name}.yaml").read_text()
    return float(re.search(r"held-out loss below ([\d.]+\d)", header)[1])


@pytest.mark.cases(1, exhaustive=0)
@pytest.mark.parametrize("name", examples(NAMES, QUICK))
def test_training_reaches_the_stated_held_out_loss(name, request):
    folder = request.getfixturevalue("quick_folder" if name == QUICK else "folder")
    first, *_, last = held_out(folder / "runs" / name)
    assert last < stated(name) < first / 1.5
    header = (CONFIGS / f"{name}.yaml").read_text()
    assert float(re.search(r"untrained ([\d.]+\d)", header)[1]) == pytest.approx(first, abs=0.01)


def test_shuffled_targets_are_not_learned(quick_folder):
    """A constant prediction has the loss 8/3: the variance of a sum of 8 numbers in [-1, 1]."""
    *_, last = held_out(quick_folder / "shuffled")
    assert last > 0.8 * 8 / 3 > 50 * stated("components_regression")


@pytest.mark.parametrize("name", ["tlama", "nima_gpt"])
def test_text_loss_is_below_the_entropy_of_byte_frequencies(name):
    text = load_corpus(load_config(CONFIGS / f"{name}.yaml").data).held_out.tokens
    counts = np.bincount(text)
    share = counts[counts > 0] / len(text)
    assert stated(name) < -np.sum(share * np.log(share)) - 0.2


def test_wave_loss_is_below_that_of_repeating_the_last_vector():
    rows = rows_of("components_autoregressive", 500)
    error = np.mean((rows["targets"] - rows["inputs"]) ** 2)
    assert error == pytest.approx(0.39, abs=0.02)
    assert stated("components_autoregressive") < error / 3


@pytest.mark.campaign
def test_colours_of_held_out_images_are_predicted(folder):
    rows = rows_of("llm", 256)
    model = load_pretrained(folder / "runs" / "llm")

    @jax.jit
    def predict(images):
        tokens = jnp.asarray(rows["tokens"][:, :-1])
        return (
            model(tokens, image_embedding=model.embed_images(images, tokens))
            .logits[:, -1]
            .argmax(-1)
        )

    colours = rows["tokens"][:, -1]
    assert set(colours) == set(range(8))
    assert np.mean(predict(rows["images"]) == colours) > 0.95
    other = np.roll(rows["images"], 1, axis=0)  # control: the image of another row
    assert np.mean(predict(other) == colours) < 0.3


@pytest.mark.campaign
def test_held_out_tokens_are_copied(folder):
    rows = rows_of("nima_transformer", 128)
    model = load_pretrained(folder / "runs" / "nima_transformer")
    tokens = rows["tokens"]
    predict = jax.jit(lambda *inputs: model(*inputs).logits.argmax(-1))
    assert np.mean(predict(rows["source"], tokens[:, :-1]) == tokens[:, 1:]) > 0.95


@pytest.mark.campaign
def test_generate_rejects_a_run_that_was_not_trained_on_text(folder, capsys):
    assert main(["generate", str(folder / "runs" / "llm"), "--prompt", "red"]) == 2
    assert (
        "was not trained on text, so it has no tokenizer; its data is TaskConfig"
        in capsys.readouterr().err
    )


@pytest.mark.exhaustive
def test_init_from_starts_at_the_loss_of_the_source_run(quick_folder):
    """For a model over vectors: the first held-out loss is the last one of the source run."""
    source = quick_folder / "runs" / "components_regression"
    config = load_config(CONFIGS / "components_regression.yaml")
    again = dataclasses.replace(
        config,
        output=str(quick_folder / "again"),
        model=None,
        init_from=str(source),
        steps=1,
        optimizer=dataclasses.replace(config.optimizer, warmup_steps=0),
        mesh=MeshConfig(data=4, tensor=2),
        logging=LoggingConfig(tensorboard=False),
    )
    train(again, load_pretrained(source))
    assert held_out(quick_folder / "again")[0] == pytest.approx(held_out(source)[-1], rel=1e-3)
