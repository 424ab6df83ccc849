"""Float64: everything that PyTorch would compute in float32 is computed in float64."""

import pytest
import torch
from hf_cases import CASES, tokens_of
from tiers import examples
from torch import nn
from torch.nn import functional

from jaxllm.interop.parity.execution.float64 import in_float64


class Narrow(nn.Module):
    """A module that casts to float32, has a float32 buffer and makes float32 tensors."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(7, 5)
        self.register_buffer("shift", torch.randn(7))

    def forward(self, x):
        x = (x + self.shift).to(torch.float32) / torch.arange(1, 8, dtype=torch.float32)
        return functional.softmax(self.proj(x), dim=-1, dtype=torch.float32).float()


def test_casts_buffers_and_new_tensors_are_in_float64():
    module, x = Narrow(), torch.randn(3, 7)
    params = {name: p.detach().double() for name, p in module.named_parameters()}
    with in_float64():
        found = torch.func.functional_call(module, params, (x,))
    assert found.dtype == torch.float64
    wide = (x.double() + module.shift.double()) / torch.arange(1.0, 8.0, dtype=torch.float64)
    expected = torch.softmax(wide @ params["proj.weight"].T + params["proj.bias"], -1)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-16)
    assert module(x).dtype == torch.float32  # nothing lasts


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_are_computed_in_float64(dtype):
    """Tables of angles too, which are constants in float32, are not rounded to a narrow type."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator).to(dtype) for shape in ((3, 7), (7, 7)))

    def run():
        angles = torch.arange(7.0).cos().to(dtype)
        return functional.softmax((x @ weight) * angles, -1, dtype=torch.float32).to(dtype)

    with in_float64():
        found = run()
    assert found.dtype == torch.float64
    angles = torch.arange(7.0).cos().double()
    exact = torch.softmax((x.double() @ weight.double()) * angles, -1)
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-15)
    assert run().dtype == dtype


@pytest.mark.cases(3, exhaustive=15)
@pytest.mark.parametrize("name", examples(CASES, "llama", "gpt2", "mixtral"))
def test_gradients_of_a_model_do_not_depend_on_the_order_of_sums(name):
    """In float64 a permuted batch gives the same loss and gradients to 1e-12; float32 does not."""
    original = CASES[name].build().eval()
    tokens = torch.as_tensor(tokens_of(original, batch_size=2)[:, :40])

    def run(tokens, dtype):
        params = {
            name: p.detach().to(dtype, copy=True).requires_grad_()
            for name, p in original.named_parameters()
        }
        given = {"input_ids": tokens, "use_cache": False}
        logits = torch.func.functional_call(original, params, (), given).logits.float()
        loss = logits.square().mean() + logits.mean()
        loss.backward()
        assert loss.dtype == logits.dtype
        return loss.dtype, {n: p.grad for n, p in params.items() if p.grad is not None}

    with in_float64():
        (dtype, one), (_, other) = run(tokens, torch.float64), run(tokens.flip(0), torch.float64)
    assert dtype == torch.float64
    for parameter, gradient in one.items():
        assert gradient.dtype == torch.float64
        apart = (gradient - other[parameter]).norm() / gradient.norm()
        assert apart < 1e-11 or gradient.norm() < 1e-12, parameter
