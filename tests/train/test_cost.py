"""Costs of runs: compared with counts by hand, with placed parameters and with the scaling law."""

import dataclasses

import pytest
from kinds import CONFIGS
from tiny import TINY

from jaxllm.config import ExpertsConfig, LayerKind, with_fields
from jaxllm.lora.config import LoraConfig
from jaxllm.models import build_abstract
from jaxllm.params import count_parameters, initialize, named_parameters
from jaxllm.train import TrainConfig, make_mesh
from jaxllm.train.cost import bytes_per_device, estimate_cost, optimal_parameters
from jaxllm.train.data.tasks import TaskConfig
from jaxllm.train.mesh import MeshConfig
from jaxllm.train.optimizers.config import OptimizerConfig

RUN = TrainConfig(output="runs/x", steps=100, batch_size=8, seq_len=64, model=TINY)
SIZES = {"data": 1, "fsdp": 2, "sequence": 1, "tensor": 4, "expert": 1}


def test_parameter_token_and_operation_counts():
    cost = estimate_cost(RUN)
    D, N, K, H, F = 32, 4, 2, 16, 56
    layer = 2 * D + 2 * D * N * H + 2 * D * K * H + 3 * D * F
    assert cost.parameters == 2 * 96 * D + D + 3 * layer
    assert cost.tokens == 100 * 8 * 64
    assert cost.operations == 6.0 * cost.parameters * cost.tokens


def test_the_optimum_has_the_same_compute_budget():
    cost = estimate_cost(RUN)
    spent = 6 * cost.optimal_parameters * cost.optimal_tokens
    assert spent == pytest.approx(cost.operations)
    assert cost.optimal_tokens == pytest.approx(20 * cost.optimal_parameters)


def test_chinchilla_itself_is_near_the_optimum():
    """70B parameters on 1.4T tokens (Hoffmann et al., 2022)."""
    assert optimal_parameters(6 * 70e9 * 1.4e12) == pytest.approx(70e9)


def test_memory_per_device_matches_placed_parameters():
    model = initialize(TINY, make_mesh(**SIZES), seed=0)
    device = {}
    for variable in named_parameters(model).values():
        for shard in variable.get_value().addressable_shards:
            device[shard.device] = device.get(shard.device, 0) + shard.data.size
    assert max(device.values()) < count_parameters(model)
    assert bytes_per_device(RUN, {"data": 1, **SIZES}) == 16 * max(device.values())
    on_mesh = dataclasses.replace(RUN, mesh=MeshConfig(fsdp=2, tensor=4))
    assert estimate_cost(on_mesh).bytes_per_device == 16 * max(device.values())


def test_memory_is_that_of_the_optimizer_by_name():
    def held(**settings) -> int:
        return bytes_per_device(
            dataclasses.replace(RUN, optimizer=OptimizerConfig(**settings)), {"data": 1, "fsdp": 1}
        )

    size = count_parameters(build_abstract(TINY))
    assert held() == 16 * size
    assert held(name="lion") == held(name="sgd") == 12 * size
    assert 8 * size < held(name="adafactor") < 9 * size
    assert 12 * size < held(name="muon") < 16 * size
    assert held(precision="bfloat16_master") == (2 + 2 + 4 + 8) * size
    lora = held(lora=LoraConfig(rank=4, base_dtype="bfloat16"))
    assert 2 * size < lora < 0.3 * 16 * size


def test_image_patches_count_for_the_vision_encoder_only():
    model = CONFIGS["sees images"]
    run = dataclasses.replace(RUN, model=model, seq_len=4, data=TaskConfig(task="colour"))
    of_vision = sum(
        variable.get_value().size
        for name, variable in named_parameters(build_abstract(model)).items()
        if name.startswith("vision.")
    )
    cost = estimate_cost(run)
    others = cost.parameters - of_vision
    assert of_vision > 1000 < others
    assert cost.operations == 6 * 800 * (16 * of_vision + 4 * others)
    assert estimate_cost(dataclasses.replace(run, data=RUN.data)).operations == 6 * 800 * 4 * others


@pytest.mark.parametrize("kind", ["pooled", "vectors given vectors"])
def test_vector_models_have_no_compute_optimum(kind):
    cost = estimate_cost(dataclasses.replace(RUN, model=CONFIGS[kind]))
    assert cost.operations == 6 * cost.parameters * cost.tokens > 0
    assert cost.optimal_parameters is cost.optimal_tokens is None
    assert "compute-optimal" not in str(cost)
    assert f"{cost.parameters:,}" in str(cost)


def test_costs_that_cannot_be_estimated_are_rejected():
    with pytest.raises(ValueError, match="init_from='x' does not give the model's sizes"):
        estimate_cost(dataclasses.replace(RUN, model=None, init_from="x"))
    with pytest.raises(ValueError, match=r"operations=0\.0 is not a positive"):
        optimal_parameters(0.0)


def test_only_the_chosen_experts_of_a_token_count():
    """Of four experts of 3 x 32 x 24 elements per layer, a token goes to one."""
    experts = ExpertsConfig(num_experts=4, top_k=1, mlp_dim=24)
    model = with_fields(TINY, pattern=(LayerKind(mlp="experts"),), experts=experts)
    cost = estimate_cost(dataclasses.replace(RUN, model=model))
    idle = TINY.num_layers * 3 * (3 * 32 * 24)
    assert cost.operations == 6.0 * (cost.parameters - idle) * cost.tokens
