"""Renders a parity report for the terminal and as an HTML page."""
