"""How large an error may be. The reference's own rounding noise decides, not a constant."""

from jaxllm import closeness
from jaxllm.closeness import LEAST, MOST_IN_TRAINING, NOISE_FACTOR

__all__ = ["LEAST", "MOST", "MOST_IN_TRAINING", "NOISE_FACTOR", "threshold"]

# Beyond this the reference is too ill-conditioned for float32 to tell a bug from noise.
MOST = 1e-3


def threshold(floor: float, most: float = MOST) -> float:
    """The relative L2 error that is still noise where the reference's own is `floor`."""
    return closeness.threshold(floor, most)
