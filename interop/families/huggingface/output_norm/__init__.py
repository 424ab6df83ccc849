"""Decoders with RMS norms on the outputs of sublayers."""
