"""The parity report as plain data."""
