"""Text generation: greedy decoding, sampling, beam search, and batches that requests enter."""

from .beam import beam_search
from .continuation import Continuation
from .decode import generate
from .engine import Engine
from .rules import TokenRules
from .sampling import Sampling

__all__ = ["Continuation", "Engine", "Sampling", "TokenRules", "beam_search", "generate"]
