"""Hugging Face model families, one module each: config reader and writer, and tensor rules."""
