"""Text generation: greedy decoding, sampling and beam search."""

from .beam import beam_search
from .decode import generate
from .rules import TokenRules
from .sampling import Sampling

__all__ = ["Sampling", "TokenRules", "beam_search", "generate"]
