"""Whole models with an adapter fused into their weights, in files that other programs load."""
