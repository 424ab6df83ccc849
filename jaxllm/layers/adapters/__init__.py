"""Adapters: small trained additions to the frozen projections of a layer."""
