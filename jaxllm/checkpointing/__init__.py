"""Native checkpoints on disk: digests of arrays, and reading that checks them."""
