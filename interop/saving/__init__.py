"""Exporting models: lays files out and writes them, by one process or many."""
