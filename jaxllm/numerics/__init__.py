"""Numerics of comparisons: distances between arrays, and which of them rounding explains."""
