"""Verification: proves that layouts compute the same training step, and compares runs."""
