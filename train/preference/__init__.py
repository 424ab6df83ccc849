"""Training on preferences: the loss of DPO, and the reference that it compares with."""
