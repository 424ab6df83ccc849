"""How large an error may be. The reference's own rounding noise decides, not a constant."""

# Rounding noise is measured by computing the reference in other ways that are just as right.
# Honest models were at most twice as far from the reference as the farthest of these ways, over
# widths of 32 to 4096, 1 to 32 layers and weights of standard deviation 0.02 to 0.3.
NOISE_FACTOR = 4.0

# Sixteen roundings: what no one can be held to, however little noise was measured.
LEAST = 16 * 2.0**-24

# Beyond this the reference is too ill-conditioned for float32 to tell a bug from noise.
MOST = 1e-3


# Of gradients, moments, updates and losses.
MOST_IN_TRAINING = 1e-4


def threshold(floor: float, most: float = MOST) -> float:
    """The relative L2 error that is still noise where the reference's own is `floor`."""
    return min(max(NOISE_FACTOR * floor, LEAST), most)
