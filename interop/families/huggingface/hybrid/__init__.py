"""Decoders some of whose layers have a recurrent state in place of attention."""
