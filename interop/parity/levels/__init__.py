"""Parity levels: config, weights, forward pass, training and generation."""
