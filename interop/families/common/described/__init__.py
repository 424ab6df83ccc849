"""Decoder families described by parts: each is some fields of the config, in both directions."""
