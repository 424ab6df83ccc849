"""AdamW state of PyTorch and JAX training runs, in both directions."""
