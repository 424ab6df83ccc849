"""Old names that users may still import."""
