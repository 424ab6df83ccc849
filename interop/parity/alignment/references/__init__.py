"""PyTorch references: overrides, adapters of PEFT, and recurrences that are recorded."""
