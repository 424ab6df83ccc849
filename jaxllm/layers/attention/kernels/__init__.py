"""Fused self-attention: kernels of accelerators, the choice between them, and meshes."""
