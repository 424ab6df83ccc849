"""Variants of a training step: every mesh layout and every other change, with distinct names."""

import dataclasses

import numpy as np
import pytest
from tiny import TINY, random_of, relative_l2

from jaxllm.config import ExpertsConfig
from jaxllm.lora.config import LoraConfig
from jaxllm.params import split
from jaxllm.train import TrainConfig
from jaxllm.train.optimizers.config import BadStepsConfig, OptimizerConfig
from jaxllm.train.verify.variants import (
    Program,
    Variant,
    by_name,
    find_experts,
    layouts,
    variants,
)

RUN = TrainConfig(output="nowhere", steps=10, batch_size=8, seq_len=16, model=TINY)


def test_every_mesh_layout_is_a_variant():
    dense = variants(RUN, 8)
    meshes = {variant.mesh for variant in dense}
    assert len(meshes - {()}) == 20  # 8 = 2 * 2 * 2 over four axes
    assert (("data", 2), ("fsdp", 2), ("tensor", 2)) in meshes
    names = [variant.name for variant in dense]
    assert len(names) == len(set(names))
    for change in ("remat dots", "remat full", "attention by splash", "layers one by one"):
        places = {name.removesuffix(f", {change}") for name in names if name.endswith(change)}
        assert places == {"one device", "fsdp=2 x sequence=2 x tensor=2"}
    assert set(layouts(["data", "expert"], 4)) == {
        (("data", 4),),
        (("expert", 4),),
        (("data", 2), ("expert", 2)),
    }
    assert all(not variant.mesh for variant in variants(RUN, 1))


def test_the_expert_axis_is_used_only_by_models_with_experts():
    experts = ExpertsConfig(num_experts=4, top_k=2, mlp_dim=24)
    assert find_experts(TINY) is None
    assert not any("expert" in dict(variant.mesh) for variant in variants(RUN, 8))
    pattern = tuple(dataclasses.replace(kind, mlp="experts") for kind in TINY.pattern)
    model = dataclasses.replace(TINY, experts=experts, pattern=pattern)
    assert find_experts(model) == experts
    found = variants(dataclasses.replace(RUN, model=model), 8)
    assert any("expert" in dict(variant.mesh) for variant in found)


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        (Variant(), "one device"),
        (Variant(mesh=(("fsdp", 4), ("tensor", 2))), "fsdp=4 x tensor=2"),
        (Variant(remat="full", scan_layers=False), "one device, remat full, layers one by one"),
        (Variant(accumulate=2, loss_chunk=5), "one device, accumulate 2, loss in chunks of 5"),
    ],
)
def test_a_variant_is_named_by_its_settings(variant, name):
    assert variant.name == name


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["muon", "adafactor"])
def test_the_update_is_that_of_the_run_s_optimizer_on_a_mesh_too(name):
    """Gradients are told apart by AdamW's moments, whatever the run's optimizer is."""
    settings = {"lora": LoraConfig(), "bad_steps": BadStepsConfig(action="skip"), "ema": 0.9}
    run = dataclasses.replace(RUN, optimizer=OptimizerConfig(name=name, **settings))
    plain = dataclasses.replace(run, optimizer=OptimizerConfig())
    rng = np.random.default_rng(0)
    weights = by_name(split(random_of(TINY))[1])
    batch = {"tokens": rng.integers(0, 96, (8, 17)), "mask": np.ones((8, 16), np.int32)}
    mesh = Variant(mesh=(("fsdp", 2), ("tensor", 2)))
    single, found, adamw = (
        Program(config, variant)(weights, batch)
        for config, variant in ((run, Variant()), (run, mesh), (plain, Variant()))
    )
    hidden = [name for name in weights if name.endswith("kernel") and "layers." in name]
    for kernel in hidden:
        assert relative_l2(found.update[kernel], single.update[kernel]) < 1e-3
        assert relative_l2(single.update[kernel], adamw.update[kernel]) > 0.1
        np.testing.assert_array_equal(single.first_moment[kernel], adamw.first_moment[kernel])
