"""Models in GGUF files, translated to the Hugging Face families: names of fields and tensors."""
