"""Adapters on disk: immutable versions, named by their content, and names that move."""
