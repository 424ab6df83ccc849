"""GGUF, the format of llama.cpp: one file with config, tokenizer and quantized tensors."""
