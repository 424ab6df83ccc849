"""Several processes as one: joining, agreeing before work, and failing together."""
