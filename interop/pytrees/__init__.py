"""Checkpoints into and out of any JAX pytree, by rules that name its leaves."""
