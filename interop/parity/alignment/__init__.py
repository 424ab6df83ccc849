"""Pairs what both sides compute: inputs, parameter names, activations, expert routing."""
