"""The ways to change a linear layer, one file each (the protocol is in `lora/delta.py`)."""
