"""Meta's Llama 2, 3 and 4 checkpoints: `params.json` reader and writer, and tensor rules."""
