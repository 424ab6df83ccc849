"""LoRA's config: the scale, and settings that are refused."""

import pytest

from jaxllm.lora.config import LoraConfig


def test_the_scale_is_alpha_by_the_rank_or_its_root():
    assert LoraConfig(rank=16, alpha=8).scale == 0.5
    assert LoraConfig(rank=16, alpha=8, rslora=True).scale == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "optimizer.lora.rank=0 is less than 1"),
        ({"alpha": 0.0}, "optimizer.lora.alpha=0.0 is not positive"),
        ({"dropout": 1.0}, "optimizer.lora.dropout=1.0 is not less than 1"),
        ({"base_dtype": "int8"}, "optimizer.lora.base_dtype='int8' is not one of"),
        ({"targets": ()}, "nothing to train"),
    ],
)
def test_invalid_settings_are_reported(changes, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**changes)
