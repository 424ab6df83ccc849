"""Attention: self-attention, cross-attention, masks, positions and key/value caches."""
