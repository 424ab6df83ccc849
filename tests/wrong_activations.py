"""Arrays for tests of hints on wrong activations."""

from typing import Any

import ml_dtypes
import numpy as np

from jaxllm.interop.parity.diagnosis.evidence import Evidence
from jaxllm.interop.parity.diagnosis.hints import hint_of

B, T, N, K, H, D, F = 2, 24, 4, 2, 8, 12, 16


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    """Draws normal numbers in float32; they differ for each shape and seed."""
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def half(x: np.ndarray) -> np.ndarray:
    """Rounds numbers to bfloat16."""
    return x.astype(ml_dtypes.bfloat16).astype(np.float32)


def hint(path: str, ours: np.ndarray, theirs: np.ndarray, **around: Any) -> str | None:
    """Returns the hint on a wrong activation at this path."""
    return hint_of(Evidence(path, ours, theirs, 1e-6, **around))
