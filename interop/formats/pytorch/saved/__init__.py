"""Files that PyTorch saved, old and new, and the model within a distributed checkpoint."""
