"""Exports of a run while it trains: checkpoints for other software, written in the background."""
