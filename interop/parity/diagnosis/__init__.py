"""Diagnosis: hints at the cause of a wrong step, from its inputs, outputs and weights."""
