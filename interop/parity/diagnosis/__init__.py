"""Diagnosis: hints at the cause of a wrong activation, from its inputs, outputs and weights."""
