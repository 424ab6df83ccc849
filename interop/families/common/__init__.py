"""Code shared by model families: config fields, RoPE, experts, and common tensor rules."""
