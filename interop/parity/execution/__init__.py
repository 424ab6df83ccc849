"""Runs both sides: forward passes, training steps and generation, in JAX and in PyTorch."""
