"""The Hugging Face Hub: its client in a process of its own, its files, its cache."""
