"""Generation that keeps its caches between calls: batches that requests enter, conversations."""
