"""Error metrics, tolerances, and stores for arrays in memory or on disk."""
