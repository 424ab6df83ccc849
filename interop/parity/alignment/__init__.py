"""Aligns the two sides: inputs, parameter names, activations, expert routing."""
