"""Evaluation of models on data of their own, apart from a run."""
