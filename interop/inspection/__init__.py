"""Checkpoint inspection: list tensors, verify round trips, suggest rules for unknown formats."""
