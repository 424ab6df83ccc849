"""A family is data; its defaults suit most families."""

import pytest
from tiny import TINY

from jaxllm.interop.families.common.family import Layout, in_order, without_type
from jaxllm.interop.families.common.naming.hf_family import hf_family


def test_a_config_of_another_class_is_refused():
    family = hf_family("x", lambda fields, tensors: ({}, Layout()), lambda c, j: j, None, int)
    with pytest.raises(ValueError, match="supports int, but the model has a DecoderConfig"):
        family.check_class(TINY)


def test_written_layout_has_experts_one_by_one():
    assert Layout(model_parallel=2, experts="fused").written == Layout(model_parallel=2)


def test_small_helpers():
    assert without_type({"model_type": "x", "a": 1}) == {"a": 1}
    assert in_order(None, {"target": 2, "source_mask": 3, "source": 1}) == (1, 2)
