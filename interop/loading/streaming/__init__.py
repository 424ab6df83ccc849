"""Streams tensors from files into device shards within a bounded amount of host memory."""
