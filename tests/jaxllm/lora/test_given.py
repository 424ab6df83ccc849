"""Factors that a model already has, compared with the settings of a run."""

import dataclasses

import pytest
from tiny import random_model

from jaxllm.errors import UserError
from jaxllm.lora.attach import add_lora
from jaxllm.lora.config import LoraConfig
from jaxllm.lora.given import base_of, check_factors, given_factors

LORA = LoraConfig(rank=4, alpha=8, targets=("q_proj",))


def test_the_factors_and_the_base_of_a_model():
    model = random_model(num_layers=2)
    adapted = add_lora(model, LORA)
    assert sorted(given_factors(adapted)) == [
        f"layers.0:2.attn.q_proj.lora.{factor}" for factor in "ab"
    ]
    assert given_factors(model) == given_factors(base_of(adapted)) == {}
    assert base_of(model).origin is model.origin


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"rank": 8, "alpha": 16}, ["optimizer.lora.rank=8, but it has 4"]),
        ({"alpha": 16}, ["alpha=16 and rslora=False scale by 4, but it scales by 2"]),
        ({"rslora": True}, ["alpha=8 and rslora=True scale by 4, but it scales by 2"]),
        (
            {"targets": ("k_proj",)},
            ["targets match layers.0:2.attn.k_proj, which", "do not match layers.0:2.attn.q_proj"],
        ),
        (
            {"targets": ("q_proj", "down_proj"), "rank": 1},
            ["targets match layers.0:2.mlp.down_proj", "rank=1, but", "scale by 8, but"],
        ),
    ],
)
def test_every_difference_is_reported(changes, messages):
    adapted = add_lora(random_model(num_layers=2), LORA)
    with pytest.raises(UserError) as caught:
        check_factors(adapted, dataclasses.replace(LORA, **changes))
    lines = str(caught.value).splitlines()
    assert len(lines) == len(messages)
    for line, message in zip(lines, messages, strict=True):
        assert line.startswith("the adapter to start from: optimizer.lora.")
        assert message in line


def test_the_same_settings_in_other_words_are_accepted():
    adapted = add_lora(random_model(num_layers=2), LORA)
    same = dataclasses.replace(LORA, targets=("layers.*.attn.q_*",), dropout=0.3)
    check_factors(adapted, same)
    check_factors(adapted, dataclasses.replace(LORA, rslora=True, alpha=4))
