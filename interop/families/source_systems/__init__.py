"""The four source systems' checkpoints: config in both directions and tensor rules."""
