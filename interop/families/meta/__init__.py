"""Meta's Llama 2, 3 and 4 checkpoints: `params.json` in both directions and tensor rules."""
