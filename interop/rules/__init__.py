"""Checkpoint rules: each line maps stored tensors to a model array and back, as a bijection."""
