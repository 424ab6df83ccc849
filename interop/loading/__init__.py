"""Importing checkpoints: identify the family, plan, check, and load onto devices."""
