"""Text generation: greedy decoding, sampling and beam search."""

from .beam import beam_search
from .decode import generate
from .sampling import Sampling

__all__ = ["Sampling", "beam_search", "generate"]
