"""Multi-process training: two processes with four devices match one process with eight."""

from pathlib import Path

import pytest
from together import run_together

from jaxllm.config import DecoderConfig, ExpertsConfig, LayerKind
from jaxllm.train import TrainConfig
from jaxllm.train.config import save_config
from jaxllm.train.data.documents import DataConfig
from jaxllm.train.data.mixture import MixtureConfig
from jaxllm.train.mesh import MeshConfig
from jaxllm.train.monitoring.metrics import read_results
from jaxllm.train.settings.logging import LoggingConfig

SIZES = {"embed_dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
DENSE = DecoderConfig(vocab_size=256, mlp_dim=64, **SIZES)
EXPERTS = DecoderConfig(
    vocab_size=256,
    mlp_dim=64,
    experts=ExpertsConfig(num_experts=8, top_k=2, mlp_dim=24, aux_weight=0.01),
    pattern=(LayerKind(mlp="experts"),),
    **SIZES,
)


def run(
    output: Path,
    mesh: MeshConfig,
    processes: int,
    model: DecoderConfig = DENSE,
    mixed: bool = False,
    by_slurm: bool = False,
    **variables: str,
) -> list[dict]:
    """Runs over eight devices and returns the metrics; only process 0 may print."""
    text = output.with_suffix(".txt")
    text.write_text("".join(f"{i} squared is {i * i}. " for i in range(900)))
    data = DataConfig(text=(str(text),), held_out=0.3)
    lines = [f'{{"text": "def f(x): return {i}"}}' for i in range(300)]
    output.with_suffix(".jsonl").write_text("\n".join(lines))
    code = (str(output.with_suffix(".jsonl")),)
    other = DataConfig(text=code, held_out=0.3, packing="best_fit")
    mixture = MixtureConfig(mixture={"text": data, "code": other}, weights={"text": 1, "code": 3})
    config = TrainConfig(
        output=str(output),
        steps=4,
        batch_size=8,
        seq_len=32,
        save_every=4,
        eval_every=2,
        data=mixture if mixed else data,
        model=model,
        mesh=mesh,
        logging=LoggingConfig(tensorboard=False),
    )
    save_config(config, output.with_suffix(".yaml"))
    command = ["-m", "jaxllm", "train", str(output.with_suffix(".yaml"))]
    devices = 8 // processes
    outputs = run_together(*[command] * processes, devices=devices, by_slurm=by_slurm, **variables)
    assert ["metrics.jsonl" in out for out, _ in outputs] == [True] + [False] * (processes - 1)
    return read_results(output / "metrics.jsonl")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> list[dict]:
    """The metrics of the run with a single process."""
    return run(tmp_path_factory.mktemp("alone") / "run", MeshConfig(fsdp=8), 1)


# With fsdp=4 each process has its own rows; with tensor=8 both processes have the same rows. The
# expert axis splits rows as well.
MESHES = {
    "fsdp": MeshConfig(fsdp=4, tensor=2),
    "tensor": MeshConfig(tensor=8),
    "fsdp x expert": MeshConfig(fsdp=2, expert=4),
    "expert": MeshConfig(tensor=2, expert=4),
    "only expert": MeshConfig(expert=8),
}


@pytest.mark.cases(0, exhaustive=1)
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", MESHES)
def test_two_processes_log_the_same_losses_as_one(tmp_path, alone, name):
    together = run(tmp_path / "run", MESHES[name], 2)
    check_equal(together, alone)
    assert (tmp_path / "run" / "checkpoints" / "4" / "commit_success.txt").is_file()


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("mesh", "by_slurm"),
    [
        (MeshConfig(fsdp=2, expert=4), False),
        (MeshConfig(fsdp=2, tensor=2, expert=2), True),
        (MeshConfig(tensor=2, expert=4, sequence_parallel=True), False),
    ],
)
def test_two_processes_train_experts_as_one_does(tmp_path, mesh, by_slurm):
    """Tokens go from the devices of one process to those of the other."""
    # With jaxlib 0.10.2, a cached program with an all_to_all over CPU devices may hang.
    compiling = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    one = run(tmp_path / "one", mesh, 1, EXPERTS, **compiling)
    two = run(tmp_path / "two", mesh, 2, EXPERTS, by_slurm=by_slurm, **compiling)
    check_equal(two, one)
    assert "grad_norm/router" in one[1]


@pytest.mark.campaign
def test_two_processes_train_on_a_mixture_as_one_does(tmp_path):
    one = run(tmp_path / "one", MeshConfig(fsdp=8), 1, mixed=True)
    check_equal(run(tmp_path / "two", MeshConfig(fsdp=4, tensor=2), 2, mixed=True), one)
    assert {"loss/code", "share/text"} <= one[1].keys()
    assert "held_out_loss/code" in one[0]


def check_equal(together: list[dict], alone: list[dict]) -> None:
    assert [row["step"] for row in together] == [row["step"] for row in alone]
    for ours, expected in zip(together, alone, strict=True):
        for metric, value in expected.items():
            assert ours[metric] == pytest.approx(value, rel=1e-5)
