"""Interruptions and restarts: one run in a folder, stopping, and the checkpoint to go on from."""
