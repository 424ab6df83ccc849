"""Parity levels: what each one compares."""
