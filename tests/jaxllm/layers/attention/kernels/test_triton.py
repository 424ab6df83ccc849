"""The GPU kernel, interpreted, equals attention by definition."""

import functools

import pytest
from attention_cases import CASES, check
from tiers import examples

from jaxllm.layers.attention.kernels.triton import triton_attention


@pytest.mark.cases(1, exhaustive=4)
@pytest.mark.parametrize("name", examples(CASES, "everything"))
def test_kernel_matches_the_definition(name):
    check(CASES[name], functools.partial(triton_attention, interpret=True))
