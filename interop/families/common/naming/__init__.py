"""Names of stored tensors: their prefixes, heads for other tasks, and models without a head."""
