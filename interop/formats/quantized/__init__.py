"""Quantized storage: tensors kept as small numbers and scales, decoded while they are read."""
