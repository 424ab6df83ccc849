"""How large an error may be. The reference's own rounding noise decides, not a constant."""

from jaxllm import deviation
from jaxllm.deviation import MAX_TRAINING_THRESHOLD, MIN_THRESHOLD, NOISE_FACTOR

__all__ = ["MAX_TRAINING_THRESHOLD", "MIN_THRESHOLD", "MOST", "NOISE_FACTOR", "threshold"]

# Beyond this the reference is too ill-conditioned for float32 to tell a bug from noise.
MOST = 1e-3


def threshold(floor: float, most: float = MOST) -> float:
    """The relative L2 error that is still noise where the reference's own is `floor`."""
    return deviation.threshold(floor, most)
