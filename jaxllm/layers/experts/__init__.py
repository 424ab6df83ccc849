"""Mixtures of experts: routing, grouped matmuls and expert parallelism."""
