"""LoRA: adapters of low rank beside the frozen projections of a model."""
