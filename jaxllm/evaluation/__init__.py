"""Evaluation of models by programs of others."""
