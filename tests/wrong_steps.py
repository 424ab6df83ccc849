"""Arrays of steps that are wrong, to be recognised, and the hint that is given on them."""

from typing import Any

import ml_dtypes
import numpy as np

from jaxllm.interop.parity.diagnosis.evidence import Evidence
from jaxllm.interop.parity.diagnosis.hints import hint_of

B, T, N, K, H, D, F = 2, 24, 4, 2, 8, 12, 16


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal numbers in float32, others for each shape and seed."""
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def half(x: np.ndarray) -> np.ndarray:
    """The numbers rounded to bfloat16."""
    return x.astype(ml_dtypes.bfloat16).astype(np.float32)


def hint(path: str, ours: np.ndarray, theirs: np.ndarray, **around: Any) -> str | None:
    """What a step of this path looks like."""
    return hint_of(Evidence(path, ours, theirs, 1e-6, **around))
