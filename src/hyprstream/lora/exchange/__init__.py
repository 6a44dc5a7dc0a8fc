"""What the formats of adapters share: names, pairs of matrices, reports, guarded reading, writing.

Formats themselves are files of `lora/formats`; `lora/interchange.py` finds and joins them.
"""
