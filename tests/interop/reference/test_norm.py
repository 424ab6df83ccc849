"""The norm equals PyTorch's and computes in at least float32."""

import torch

from jaxllm.interop.reference.norm import RMSNorm, rmsnorm

X = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))


def test_norm_equals_pytorch():
    norm = RMSNorm(16, eps=1e-5)
    with torch.no_grad():
        norm.weight.copy_(1 + X[0, 0])
    expected = torch.nn.functional.rms_norm(X, (16,), norm.weight, 1e-5)
    torch.testing.assert_close(norm(X), expected)


def test_bfloat16_is_rounded_once():
    narrow = X.bfloat16()
    expected = rmsnorm(narrow.float(), 1e-5).bfloat16()
    assert torch.equal(rmsnorm(narrow, 1e-5), expected)


def test_float64_is_kept():
    assert rmsnorm(X.double(), 1e-5).dtype == torch.float64
