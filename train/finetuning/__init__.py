"""Fine-tuning of a part of the parameters: which are trained, and those that stay frozen."""
