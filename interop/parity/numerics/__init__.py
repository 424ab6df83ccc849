"""Error metrics, precisions, and conventions of attention scores."""
