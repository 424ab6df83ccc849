"""Monitoring of runs: metric logs, the progress line, and charts."""
