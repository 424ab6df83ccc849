"""What the reference computed, as recorded once and stored in packs."""
