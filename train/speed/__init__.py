"""Speed of a run: the model's FLOPs, peaks of devices, where the time goes, and profiles."""
