"""Hugging Face model families, one file each: config in both directions and tensor rules."""
