"""Levels of activations and logits: a forward pass of both sides, and what its inputs show."""
