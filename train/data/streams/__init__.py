"""Streams of tokens: made of documents, kept in memory or files, and cut into rows of a batch."""

from .packing import Packed
from .windows import TokenStream, Windows

__all__ = ["Packed", "TokenStream", "Windows"]
