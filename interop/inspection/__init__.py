"""Looking at checkpoints: inspect, verify round trips, suggest rules for unknown ones."""
