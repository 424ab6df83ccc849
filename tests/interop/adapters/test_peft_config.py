"""The config of PEFT adapters: scales by pattern, and kinds of adapters that are refused."""

import json

import pytest

from jaxllm.interop import CheckpointError
from jaxllm.interop.adapters.peft_config import PeftConfig, read_peft_config


def test_scales_by_pattern():
    config = PeftConfig(r=4, lora_alpha=8, alpha_pattern={r"layers\.1\.q": 2})
    assert config.scale_of("model.layers.0.q", 4) == 2
    assert config.scale_of("model.layers.1.q", 4) == 0.5
    assert PeftConfig(r=4, lora_alpha=8, use_rslora=True).scale_of("q", 4) == 4


def test_what_is_not_lora_is_refused_with_every_reason(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no adapter_config\.json"):
        read_peft_config(tmp_path)
    given = {"peft_type": "LOHA", "use_dora": True, "r": 0, "lora_alpha": 1}
    (tmp_path / "adapter_config.json").write_text(json.dumps(given))
    with pytest.raises(CheckpointError) as caught:
        read_peft_config(tmp_path)
    for part in ("peft_type='LOHA'", "use_dora=True is not supported, only False", "r and lora_al"):
        assert part in str(caught.value)


def test_the_fields_come_back(tmp_path):
    config = PeftConfig(r=4, lora_alpha=8, target_modules=["q_proj"], rank_pattern={"a": 2})
    (tmp_path / "adapter_config.json").write_text(json.dumps(config.to_json()))
    assert read_peft_config(tmp_path) == config
