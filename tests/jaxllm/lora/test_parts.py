"""Trained and frozen parameters: two parts that join to the whole."""

import jax
from tiny import TINY

from jaxllm.lora.attach import add_lora
from jaxllm.lora.config import LoraConfig
from jaxllm.lora.parts import join, partition
from jaxllm.models import build_abstract
from jaxllm.params import split


def test_parts_join_to_the_whole():
    lora = LoraConfig(targets=("q_proj",), full=("lm_head",))
    _, params = split(add_lora(build_abstract(TINY), lora))
    trained, frozen = partition(params, lora)
    assert len(jax.tree.leaves(trained)) == 3
    assert jax.tree.structure(join(trained, frozen)) == jax.tree.structure(params)
    assert partition(params, None) == (params, {})
    assert join(params, {}) is params
