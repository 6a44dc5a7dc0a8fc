"""Formats of whole models: one file each, with `IS_FOLDER` and `write`."""
