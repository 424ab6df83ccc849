"""Decoders with an RMS norm before each sublayer, and a gated MLP."""
