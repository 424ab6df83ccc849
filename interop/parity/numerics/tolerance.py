"""Thresholds of errors, as multiples of the reference's own rounding noise."""

from jaxllm import deviation
from jaxllm.deviation import MAX_TRAINING_THRESHOLD, MIN_THRESHOLD, NOISE_FACTOR

__all__ = [
    "MAX_FORWARD_THRESHOLD",
    "MAX_TRAINING_THRESHOLD",
    "MIN_THRESHOLD",
    "NOISE_FACTOR",
    "threshold",
]

# Beyond this the reference is too ill-conditioned for float32 to tell a bug from noise.
MAX_FORWARD_THRESHOLD = 1e-3


def threshold(floor: float, most: float = MAX_FORWARD_THRESHOLD) -> float:
    """Returns the largest relative L2 error that passes at a noise floor of `floor`."""
    return deviation.threshold(floor, most)
