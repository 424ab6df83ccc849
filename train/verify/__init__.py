"""Proves that layouts compute the same thing, and compares runs."""
