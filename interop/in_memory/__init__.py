"""State dicts in memory: models of PyTorch in this process, in and out, without files."""
