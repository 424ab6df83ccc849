"""Groups of settings of a run that no number of it depends on, and old names of fields."""
