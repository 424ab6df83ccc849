"""File-to-file conversion between checkpoint formats, resumable after a kill."""
