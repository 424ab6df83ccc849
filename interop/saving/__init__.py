"""Exporting models: lays out checkpoint files and writes them, from one process or several."""
