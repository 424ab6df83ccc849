"""Preference data: pairs of a chosen and a rejected answer to one prompt."""
