"""The run configs in configs/: each can be read, fits its mesh and builds an abstract model."""

import dataclasses
from pathlib import Path

import pytest

from jaxllm.config import make_config, with_fields
from jaxllm.interop.families import FAMILIES, Fields
from jaxllm.models import build_abstract
from jaxllm.params import count_parameters, named_parameters
from jaxllm.train import TrainConfig, load_config
from jaxllm.train.cost import estimate_cost

SYSTEMS = {
    family.name.replace("-", "_"): family
    for family in FAMILIES
    if family.format in ("tlama", "llm", "nima", "components")
}
CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.cases(5)
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_builds_abstractly(path):
    config = load_config(path)
    assert isinstance(config, TrainConfig)
    ways = config.mesh.data * config.mesh.fsdp
    assert config.batch_size // config.accumulate % ways == 0
    if config.model is not None:
        model = build_abstract(config.model)
        assert estimate_cost(config).parameters == count_parameters(model) > 0
        assert all(
            type(v.get_value()).__name__ == "ShapeDtypeStruct"
            for v in named_parameters(model).values()
        )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_header_states_command_hardware_and_time(path):
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    head = "\n".join(comments)
    assert f"jaxllm train configs/{path.name}" in head
    assert "Hardware:" in head
    assert "Time:" in head


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_source_system_config_can_be_expressed_by_the_system(name):
    """The system's own arguments can express it, except for initialization and the image token."""
    model = load_config(CONFIGS[0].with_name(f"{name}.yaml")).model
    family, init = SYSTEMS[name], getattr(model, "encoder", model).init
    if getattr(model, "vision", None) is not None:
        vision = dataclasses.replace(model.vision, image_token=None)
        model = dataclasses.replace(model, vision=vision)
    fields = Fields(family.write_config(model, {}))
    values, _ = family.read_config(fields, {})
    assert fields.finish() == []
    assert with_fields(make_config(values), init=init) == model
