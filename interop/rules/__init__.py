"""Checkpoint rules: one line that maps a stored tensor to an array and back, proven a bijection."""
