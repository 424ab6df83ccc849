"""Sampling text from a model."""

from jaxllm.generation.beam import beam_search
from jaxllm.generation.decode import generate
from jaxllm.generation.sampling import Sampling

__all__ = ["Sampling", "beam_search", "generate"]
