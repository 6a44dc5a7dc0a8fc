"""Sparse grids and the codes they are stored in: arrays in, bytes out. NumPy only."""
