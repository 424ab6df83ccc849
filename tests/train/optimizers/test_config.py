"""Settings of optimizers that are refused."""

import math

import pytest

from jaxllm.lora.config import LoraConfig
from jaxllm.train.optimizers.config import BadStepsConfig, GroupConfig, OptimizerConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, "optimizer.learning_rate=0.0"),
        ({"learning_rate": -1e-3}, "optimizer.learning_rate=-0.001"),
        ({"clip_norm": 0.0}, "optimizer.clip_norm=0.0"),
        ({"eps": 0.0}, "optimizer.eps=0.0"),
        ({"warmup_steps": -1}, "optimizer.warmup_steps=-1"),
        ({"weight_decay": -0.1}, "optimizer.weight_decay=-0.1"),
        ({"b1": 1.0}, "optimizer.b1=1.0"),
        ({"b1": math.nan}, "optimizer.b1=nan is not a finite number"),
        ({"learning_rate": math.nan}, "optimizer.learning_rate=nan is not a finite number"),
        ({"learning_rate": math.inf}, "optimizer.learning_rate=inf is not a finite number"),
        ({"decay": "fast"}, "optimizer.decay='fast' is not one of cosine, .*, multi_step"),
        ({"b2": 1.5}, "optimizer.b2=1.5"),
        ({"name": "adam"}, "optimizer.name='adam' is not one of adamw, .*, sgd"),
        ({"ema": 1.0}, "optimizer.ema=1.0 is not less than 1"),
        ({"clip_value": 0.0}, "optimizer.clip_value=0.0 is not positive"),
        (
            {"lora": LoraConfig(), "precision": "bfloat16_master"},
            "optimizer.precision='bfloat16_master': the parameters that LoRA trains are few",
        ),
    ],
    ids=str,
)
def test_invalid_settings_are_reported(changes, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BadStepsConfig(spike=1.0), "optimizer.bad_steps.spike=1.0 is not more than 1"),
        (lambda: GroupConfig(params=()), "optimizer.groups: params is empty"),
        (lambda: GroupConfig(params=("a",), rate=-1.0), "optimizer.groups: rate=-1.0 is negative"),
        (lambda: GroupConfig(params=("a",), rate=math.inf), "rate=inf is not a finite number"),
        (lambda: GroupConfig(params=("a",), weight_decay=-0.1), "weight_decay=-0.1 is negative"),
    ],
)
def test_invalid_groups_are_reported(make, message):
    with pytest.raises(ValueError, match=message):
        make()
