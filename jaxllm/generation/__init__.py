"""Text generation: greedy decoding, sampling and beam search."""

from .beam import beam_search
from .continuation import Continuation
from .decode import generate
from .rules import TokenRules
from .sampling import Sampling

__all__ = ["Continuation", "Sampling", "TokenRules", "beam_search", "generate"]
