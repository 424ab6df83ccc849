"""Error metrics, tolerances, and arrays kept on disk."""
