"""What PyTorch saved: files old and new, and the model's part of a distributed checkpoint."""
