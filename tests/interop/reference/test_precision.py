"""Dtypes narrower than float32 are widened; wider ones are kept."""

import pytest
import torch

from jaxllm.interop.reference.precision import at_least_float32


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_dtypes_are_widened_to_at_least_float32(given, found):
    assert at_least_float32(torch.ones(2, dtype=given)).dtype == found
