"""AdamW state of training runs, converted between PyTorch and JAX in both directions."""
