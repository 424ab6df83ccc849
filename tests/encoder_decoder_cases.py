"""All cases of Hugging Face encoder-decoders, collected from their families' test files."""

from encoder_decoder_case import Case, Inputs, inputs_of, logits_of, logits_of_original
from family_cases import collect

__all__ = ["CASES", "Case", "Inputs", "inputs_of", "logits_of", "logits_of_original"]

CASES: dict[str, Case] = collect(Case)
