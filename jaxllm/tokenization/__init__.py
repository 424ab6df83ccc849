"""Tokenization: texts to token ids and back, the same for training, generation and parity."""

from .finding import check_tokens, find_tokenizer, load_tokenizer
from .tokenizer import ByteTokenizer, Tokenizer

__all__ = ["ByteTokenizer", "Tokenizer", "check_tokens", "find_tokenizer", "load_tokenizer"]
