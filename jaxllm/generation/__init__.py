"""Generation: greedy decoding, sampling, beam search, batches that requests enter, vectors."""

from .beam import beam_search
from .continuation import Continuation
from .decode import generate
from .rules import TokenRules
from .sampling import Sampling
from .sessions.engine import Engine
from .sessions.session import Session
from .vectors import generate_vectors

__all__ = [
    "Continuation",
    "Engine",
    "Sampling",
    "Session",
    "TokenRules",
    "beam_search",
    "generate",
    "generate_vectors",
]
