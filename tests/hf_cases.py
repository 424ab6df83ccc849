"""All cases of Hugging Face decoders, collected from their families' test files."""

from family_cases import collect
from hf_case import LENGTH, Case, longrope, randomize, rope, stored, tokens_of

__all__ = ["CASES", "LENGTH", "Case", "longrope", "randomize", "rope", "stored", "tokens_of"]

CASES: dict[str, Case] = collect(Case)
