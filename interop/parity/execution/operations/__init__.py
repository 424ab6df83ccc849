"""Operations of PyTorch that runs in float64 and with simulated rounding treat on their own."""
