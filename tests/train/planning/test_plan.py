"""Plans: sums, roofline and MFU, and what a compiler says in place of the model."""

import dataclasses
import json

import pytest
from planned_runs import GPU, TPU, run

from jaxllm.errors import UserError
from jaxllm.train.planning.collectives import Collective
from jaxllm.train.planning.compiled.compiler import Compiled
from jaxllm.train.planning.plan import make_plan


def test_a_plan_adds_up():
    plan = make_plan(run(fsdp=8), TPU)
    device = TPU.device
    held = plan.parameters + plan.gradients + plan.optimizer + plan.batch
    assert plan.peak == held + plan.activations
    assert plan.spare == device.memory - plan.peak > 0
    assert plan.network_seconds == pytest.approx(plan.moved / device.link)
    assert plan.step_seconds == max(plan.compute_seconds, plan.network_seconds)
    assert plan.serial_seconds == plan.compute_seconds + plan.network_seconds
    assert plan.mfu(1.0) == plan.model_flops / (8 * device.flops)
    assert plan.model_flops < plan.executed_flops
    assert sum(plan.minimum.values()) < plan.moved


def test_a_plan_is_plain_data():
    data = json.loads(json.dumps(make_plan(run(fsdp=4, tensor=2), GPU).to_json()))
    assert data["memory"]["fits"] is True
    assert data["parameters"] > 0
    assert data["moved"].keys() >= {"fsdp", "tensor"}
    assert data["topology"] == "h100:8"


def test_the_compiler_has_the_last_word():
    moved = (Collective("all-gather", ("fsdp",), "bf16", 1, 7e9),)
    compiled = Compiled(200 * 2**30, moved, 5e9, (("f32[8]", 32.0, "here"),), 60.0)
    plan = make_plan(run(fsdp=8), TPU, compiled)
    assert (plan.source, plan.peak, plan.collectives) == ("compiler", 200 * 2**30, moved)
    assert plan.spare < 0
    # A program that does not fit has no collectives: the model's stand in.
    needed = make_plan(run(fsdp=8), TPU, compiled._replace(collectives=()))
    assert needed.collectives == make_plan(run(fsdp=8), TPU).collectives
    assert needed.peak == 200 * 2**30


def test_a_run_without_sizes_has_no_plan():
    config = dataclasses.replace(run(), model=None, init_from="x")
    with pytest.raises(UserError, match="does not give the model's sizes"):
        make_plan(config, TPU)
