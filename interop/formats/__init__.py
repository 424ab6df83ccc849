"""Checkpoint file formats: reading and writing tensors without PyTorch, executing nothing."""
