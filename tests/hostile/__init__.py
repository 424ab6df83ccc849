"""Hostile files: mutations of every file that jaxllm reads, tried in a process of their own."""
