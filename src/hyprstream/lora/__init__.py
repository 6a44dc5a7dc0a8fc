"""Arithmetic of adapters: what they add, kept on the host, in device slots and in batches."""
