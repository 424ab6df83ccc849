"""The model that a run starts from: its dtype by the config, and LoRA's factors."""

import dataclasses

import pytest
from tiny import TINY, random_model

from jaxllm.lora.config import LoraConfig
from jaxllm.params import named_parameters
from jaxllm.train import TrainConfig
from jaxllm.train.config import ConfigError
from jaxllm.train.finetuning.start import model_to_train, start_dtype
from jaxllm.train.optimizers.config import OptimizerConfig

RUN = TrainConfig(output="nowhere", steps=9, batch_size=8, seq_len=16, init_from="base")
NARROW = LoraConfig(base_dtype="bfloat16")


@pytest.mark.parametrize(
    ("optimizer", "dtype"),
    [
        (OptimizerConfig(), "float32"),
        (OptimizerConfig(lora=LoraConfig()), "float32"),
        (OptimizerConfig(lora=NARROW), "bfloat16"),
        (OptimizerConfig(precision="bfloat16_master"), "bfloat16"),
    ],
)
def test_weights_must_have_the_dtype_of_the_run(optimizer, dtype):
    run = dataclasses.replace(RUN, optimizer=optimizer)
    assert start_dtype(run) == dtype
    given = random_model({"numerics.param_dtype": "float16"})
    with pytest.raises(ConfigError, match=f"load them with dtype='{dtype}'"):
        model_to_train(run, given)
    made = model_to_train(dataclasses.replace(run, init_from=None, model=TINY), None)
    names = named_parameters(made)
    assert names["embed.embedding"].get_value().dtype.name == dtype
    assert any(".lora." in name for name in names) == (optimizer.lora is not None)
