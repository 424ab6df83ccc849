"""Decoders with RMS norms on the outputs of sublayers, and the models that they come from."""
