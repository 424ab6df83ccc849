"""The cases of every Hugging Face decoder, collected from the tests of their families."""

from family_cases import collect
from hf_case import LENGTH, Case, longrope, randomize, rope, stored, tokens_of

__all__ = ["CASES", "LENGTH", "Case", "longrope", "randomize", "rope", "stored", "tokens_of"]

CASES: dict[str, Case] = collect(Case)
