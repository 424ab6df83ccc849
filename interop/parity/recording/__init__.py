"""Recordings of the reference: its activations and noise, and the packs that store them."""
