"""Every run in configs/ is read, fits a mesh, and its model is built without allocating it."""

from pathlib import Path

import pytest

from jaxllm.models import build_abstract
from jaxllm.params import count, named_parameters
from jaxllm.train import TrainConfig, load_config

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_builds_abstractly(path):
    config = load_config(path)
    assert isinstance(config, TrainConfig)
    ways = config.mesh.data * config.mesh.fsdp
    assert config.batch_size // config.accumulate % ways == 0
    if config.model is not None:
        model = build_abstract(config.model)
        assert count(model) > 0
        assert all(
            type(v.get_value()).__name__ == "ShapeDtypeStruct"
            for v in named_parameters(model).values()
        )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_says_its_command_its_hardware_and_its_time(path):
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    head = "\n".join(comments)
    assert f"jaxllm train configs/{path.name}" in head
    assert "Hardware:" in head
    assert "Time:" in head
