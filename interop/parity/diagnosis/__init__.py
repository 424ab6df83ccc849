"""Hints at what a wrong step looks like, from its inputs, outputs and weights."""
