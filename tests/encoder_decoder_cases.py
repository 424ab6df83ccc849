"""The cases of every Hugging Face encoder-decoder, collected from the tests of their families."""

from encoder_decoder_case import Case, Inputs, inputs_of, logits_of, logits_of_original
from family_cases import collect

__all__ = ["CASES", "Case", "Inputs", "inputs_of", "logits_of", "logits_of_original"]

CASES: dict[str, Case] = collect(Case)
