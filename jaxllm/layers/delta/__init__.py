"""Gated DeltaNet: a recurrent state in place of attention."""
