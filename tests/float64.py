"""Random PyTorch tensors in float64, and equality up to its rounding."""

import torch


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Asserts that two tensors differ by rounding alone."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
