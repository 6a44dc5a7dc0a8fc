"""Adapters out: what learns from samples, on the weights that serve."""
