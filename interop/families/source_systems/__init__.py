"""Checkpoints of the four source systems: config readers and writers, and tensor rules."""
