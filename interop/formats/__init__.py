"""Checkpoint file formats: reads and writes tensors without PyTorch and without running code."""
