"""Layers of the models: attention, MLPs, experts, norms, projections and the image encoder."""
