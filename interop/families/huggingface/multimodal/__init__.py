"""Models of text and images, and Llama 4, whose checkpoints hold both."""
