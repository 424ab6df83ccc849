"""The parity report as plain data: rows, levels and verdicts."""
