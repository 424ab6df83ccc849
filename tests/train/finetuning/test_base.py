"""The base of an adapter: what it starts from, which dtypes it has, and its digest."""

import jax.numpy as jnp
import pytest
from tiny import TINY, random_model

from jaxllm.config import with_fields
from jaxllm.lora.attach import add_lora
from jaxllm.lora.config import LoraConfig
from jaxllm.lora.parts import partition
from jaxllm.models import build_abstract
from jaxllm.params import named_parameters, split
from jaxllm.train import make_mesh
from jaxllm.train.config import ConfigError
from jaxllm.train.finetuning.base import (
    check_base,
    describe_base,
    starting_params,
    with_wide_parameters,
)

LORA = LoraConfig(rank=2, targets=("q_proj",), full=("lm_head",), base_dtype="bfloat16")


def dtypes(model) -> dict[str, str]:
    named = named_parameters(model).items()
    return {name: variable.get_value().dtype.name for name, variable in named}


def test_trained_parameters_are_float32_on_a_base_in_bfloat16():
    narrow = with_fields(TINY, {"numerics.param_dtype": "bfloat16"})
    model = with_wide_parameters(add_lora(build_abstract(narrow), LORA), LORA)
    mesh = make_mesh(fsdp=4, tensor=2)
    bind, _ = split(model)
    started = bind(starting_params(model, LORA, mesh, 0, narrow))
    assert dtypes(started) == dtypes(model)
    wide = {name for name, dtype in dtypes(model).items() if dtype == "float32"}
    q_proj = "layers.0:3.attn.q_proj.lora"
    assert wide == {f"{q_proj}.a", f"{q_proj}.b", "lm_head.kernel"}
    values = named_parameters(started)
    assert jnp.any(values[f"{q_proj}.a"].get_value() != 0)
    assert not jnp.any(values[f"{q_proj}.b"].get_value())
    assert not values[f"{q_proj}.a"].get_value().sharding.is_fully_replicated


def test_another_base_is_told_by_its_digest():
    described = []
    for seed in (0, 0, 1):
        _, frozen = partition(split(random_model(seed=seed))[1], LORA)
        described.append(describe_base(frozen, f"base {seed}"))
    check_base(described[0], described[1])
    with pytest.raises(ConfigError, match=r"from base 1 are not those .* which came from base 0"):
        check_base(described[0], described[2])
