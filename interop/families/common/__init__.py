"""What several model families share: reading config fields, RoPE, experts, and common rules."""
