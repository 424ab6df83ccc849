"""Renders parity reports for the terminal and as HTML pages."""
