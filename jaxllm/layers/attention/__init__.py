"""Attention: self- and cross-attention, masks, positions and key/value caches."""
