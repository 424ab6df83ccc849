"""Plans of runs: what a training step holds, moves and computes on devices that are not there."""
