"""Thresholds of errors, as multiples of the reference's own rounding noise."""

from jaxllm.deviation import MIN_THRESHOLD, NOISE_FACTOR, bounded_threshold

__all__ = [
    "MAX_FORWARD_THRESHOLD",
    "MIN_THRESHOLD",
    "NOISE_FACTOR",
    "forward_threshold",
]

# Beyond this the reference is too ill-conditioned for float32 to tell a bug from noise.
MAX_FORWARD_THRESHOLD = 1e-3


def forward_threshold(floor: float) -> float:
    """Returns the tolerance of activations and logits for a noise floor."""
    return bounded_threshold(floor, MAX_FORWARD_THRESHOLD)
