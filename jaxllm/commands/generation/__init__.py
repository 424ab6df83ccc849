"""Commands that generate text: `generate` and `chat`."""
