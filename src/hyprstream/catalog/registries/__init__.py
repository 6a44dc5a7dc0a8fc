"""Where models come from: one file per registry, named as the scheme of a reference."""
