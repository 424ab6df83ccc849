"""Mixtures of experts: routing, grouped rows and expert parallelism."""
