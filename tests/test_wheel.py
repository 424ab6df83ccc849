"""Built wheel: works in an environment without PyTorch, next to a user's own `train.py`."""

import fcntl
import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import hf_cases
import pytest
from safetensors.numpy import load_file, save_file

from jaxllm.interop.parity.execution.recipe import Recipe
from jaxllm.interop.parity.golden import record_checkpoint
from jaxllm.interop.parity.levels.table import LEVELS

ROOT = Path(__file__).parents[1]

WITHOUT = ("torch", "transformers", "jaxllm", "__editable__")

SCRIPT = """
import importlib.util, pathlib, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
import numpy as np
import train as users_own_train

assert users_own_train.MINE
assert not any(map(importlib.util.find_spec, ("torch", "transformers")))
import jaxllm
assert "site-packages" in jaxllm.__file__, jaxllm.__file__

from jaxllm.config import DecoderConfig
from jaxllm.generation import generate
from jaxllm.interop import load_pretrained, save_pretrained
from jaxllm.train import TrainConfig, make_mesh, train
from jaxllm.train.data import DataConfig
from jaxllm.train.mesh import MeshConfig

sizes = dict(vocab_size=256, embed_dim=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8)
text = pathlib.Path("text.txt")
text.write_text("to be or not to be, that is the question. " * 200)
config = TrainConfig(
    output="run", steps=4, batch_size=8, seq_len=32, model=DecoderConfig(**sizes, mlp_dim=64),
    data=DataConfig(text=(str(text),), held_out=0.2),
    mesh=MeshConfig(fsdp=4, tensor=2),
)
result = train(config)
for form in ("hf", "meta", "tlama", "native"):
    save_pretrained(result.model, form, format=form)
    model = load_pretrained(form, mesh=make_mesh(fsdp=4, tensor=2))
    np.testing.assert_array_equal(model.embed.embedding[...], result.model.embed.embedding[...])
assert len(generate(load_pretrained("run"), [[116, 111]], 5)[0]) == 5
assert not {"torch", "transformers"} & set(sys.modules)
print("trained, saved, loaded")
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """A virtual environment with the built wheel and its dependencies, but without PyTorch."""
    folder = tmp_path_factory.mktemp("wheel")
    build = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    # Other workers of the tests build in the same folder of the checkout.
    (ROOT / ".cache").mkdir(exist_ok=True)
    with (ROOT / ".cache" / "wheel.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run([sys.executable, *build], check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    python = folder / "env" / "bin" / "python"
    [site] = (folder / "env" / "lib").glob("python*/site-packages")
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not entry.name.startswith(WITHOUT):
            (site / entry.name).symlink_to(entry)
    install = [
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    subprocess.run([sys.executable, *install], check=True, capture_output=True)
    return folder


def run(
    environment: Path, *command: str, cwd: Path, devices: int | None = None
) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "JAX_NUM_CPU_DEVICES")}
    if devices is not None:
        clean["JAX_NUM_CPU_DEVICES"] = str(devices)
    return subprocess.run(
        [str(environment / "env" / "bin" / command[0]), *command[1:]],
        cwd=cwd,
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )


def test_training_and_loading_work_without_pytorch(environment, tmp_path):
    (tmp_path / "train.py").write_text("MINE = True\n")
    (tmp_path / "script.py").write_text(SCRIPT)
    done = run(environment, "python", "script.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "trained, saved, loaded" in done.stdout


def test_help_works_and_missing_pytorch_is_reported(environment, tmp_path):
    assert run(environment, "jaxllm", "--help", cwd=tmp_path).returncode == 0
    done = run(environment, "jaxllm", "quickstart", cwd=tmp_path)
    assert done.returncode == 2
    assert "pip install 'jaxllm[torch]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.exhaustive
def test_a_recorded_pack_is_checked_without_pytorch(environment, tmp_path):
    """All levels pass on a mesh of eight devices; then a damaged weight is found on one device."""
    hf_cases.Case("Llama", {"num_hidden_layers": 2}).build().save_pretrained(tmp_path / "llama")
    record_checkpoint(tmp_path / "llama", tmp_path / "pack", num_tokens=300, recipe=Recipe(steps=2))
    command = ("jaxllm", "parity", "check", "pack", "llama", "--json")
    mesh = ("--mesh", "fsdp=4", "tensor=2")
    done = run(environment, *command, *mesh, cwd=tmp_path, devices=8)
    assert done.returncode == 0, done.stdout[:2000] + done.stderr
    report = json.loads(done.stdout)
    assert report["ok"]
    assert list(report["verdicts"]) == list(LEVELS)
    assert "torch" in report["versions"]  # recorded in the pack
    [file] = (tmp_path / "llama").glob("*.safetensors")
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][2, 3] *= 1.5
    save_file(tensors, file, {"format": "pt"})
    done = run(environment, *command, "--levels", "weights", "layers", cwd=tmp_path)
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["verdicts"] == {"weights": False, "layers": False}
    assert report["first_divergence"]["path"] == "layers.1.mlp.up_proj"


def test_the_template_of_the_parity_report_is_included(environment):
    [wheel] = environment.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    folder = "jaxllm/interop/parity/render"
    assert {f"{folder}/report.html.jinja", f"{folder}/report.css"} <= names


def test_the_wheel_installs_a_single_top_level_name(environment):
    [site] = (environment / "env" / "lib").glob("python*/site-packages")
    ours = {path.name for path in site.iterdir() if not path.is_symlink()}
    assert {name for name in ours if not name.endswith(".dist-info")} == {"jaxllm"}


def test_a_preset_of_the_wheel_becomes_the_file_of_a_run(environment, tmp_path):
    (tmp_path / "lines.jsonl").write_text('{"text": "a line"}\n' * 9)
    command = ("jaxllm", "new", "mine", "--from", "llama3-8b", "--data", "lines.jsonl")
    done = run(environment, *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "embed_dim: 4096" in (tmp_path / "mine.yaml").read_text()
