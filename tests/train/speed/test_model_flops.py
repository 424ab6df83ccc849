"""Model FLOPs: counted by hand, and PaLM's own formula and figures."""

import pytest
from kinds import CONFIGS
from tiny import TINY

from jaxllm.config import DeltaConfig, ExpertsConfig, LayerKind, with_fields
from jaxllm.models import build_abstract
from jaxllm.params import count_parameters, named_parameters
from jaxllm.train.speed.model_flops import flops_per_example

T = 64


def flops(*changes: dict, seq_len: int = T, **fields: object) -> float:
    return flops_per_example(build_abstract(with_fields(TINY, *changes, **fields)), seq_len)


def test_a_decoder_costs_six_flops_per_parameter_and_the_attention():
    D, N, K, H, F, L, V = 32, 4, 2, 16, 56, 3, 96
    layer = 2 * D + 2 * D * N * H + 2 * D * K * H + 3 * D * F
    parameters = V * D + D + L * layer  # the head, but not the embedding
    assert flops() == T * (6 * parameters + 12 * L * N * H * T)
    tied = flops({"head.tied": True})
    assert tied == flops()  # the one table is the head


def test_windows_and_chunks_bound_the_attention():
    whole = flops()
    for kind in ("window", "chunk"):
        pattern = (LayerKind(), LayerKind(attention=kind))
        short = flops({f"attention.{kind}": 8}, pattern=pattern)
        assert whole - short == T * 12 * 4 * 16 * (T - 8)  # one of the three layers
        assert flops({f"attention.{kind}": 999}, pattern=pattern) == whole


def test_a_recurrent_state_costs_three_products_however_long_the_text():
    """With their gradients: the key reads it and corrects it, and the query reads it."""
    delta = DeltaConfig(num_heads=4, num_key_heads=2, key_dim=3, value_dim=5)
    kinds = (LayerKind(attention="delta"), LayerKind())
    model = build_abstract(
        with_fields(TINY, {"attention.delta": delta}, pattern=kinds, num_layers=2)
    )
    parameters = sum(
        variable.get_value().size
        for name, variable in named_parameters(model).items()
        if not name.startswith("embed.")
    )
    for T in (10, 1000):
        attended = 12 * TINY.num_heads * TINY.head_dim * T
        state = 3 * 3 * 2 * (4 * 3 * 5)
        assert flops_per_example(model, T) == T * (6 * parameters + attended + state)


def test_only_the_chosen_experts_count():
    experts = ExpertsConfig(num_experts=8, top_k=2, mlp_dim=24)
    sparse = flops(experts=experts, pattern=(LayerKind(mlp="experts"),))
    dense = flops(mlp_dim=48)
    router = 32 * 8
    assert sparse - dense == T * 6 * 3 * router


def test_an_encoder_decoder_attends_in_three_places_per_pair_of_layers():
    model = build_abstract(CONFIGS["encoder-decoder"])
    stacks = model.config.encoder, model.config.decoder
    tables = [n for n in named_parameters(model) if n.endswith(".embedding")]
    looked_up = sum(named_parameters(model)[name].get_value().size for name in tables)
    used = count_parameters(model) - looked_up
    spans = sum(s.num_layers * s.num_heads * s.head_dim * (1 + s.attention.cross) for s in stacks)
    assert flops_per_example(model, T) == T * (6 * used + 12 * spans * T)


def test_images_cost_the_vision_encoder():
    model = build_abstract(CONFIGS["sees images"])
    vision = model.config.vision
    sizes = [v.get_value().size for n, v in named_parameters(model).items() if n[:7] == "vision."]
    attention = 12 * vision.num_layers * vision.embed_dim * vision.num_patches
    difference = flops_per_example(model, 4, with_image=True) - flops_per_example(model, 4)
    assert difference == pytest.approx(vision.num_patches * (6 * sum(sizes) + attention))


def test_palm_itself():
    """PaLM 540B on 6144 TPU v4 chips: 238.3k tokens/s are an MFU of 46.2 % (table 3 and B)."""
    per_token = 6 * 540.35e9 + 12 * 118 * 48 * 256 * 2048
    assert 238.3e3 * per_token / (6144 * 275e12) == pytest.approx(0.462, abs=0.002)
