"""Fuzz the GGUF reader: `python -m tests.fuzz.fuzz_gguf SECONDS FOLDER`."""

import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]  # not installed

with atheris.instrument_imports(include=["hyprstream"]):
    from hyprstream.models.checkpoint import GgufFile

from tests.fuzz.driver import fuzz
from tests.models.checkpoint.forge import sound_gguf
from tests.models.checkpoint.judge import read_all

WORDS = ("GGUF", "general.alignment", "split.count")

if __name__ == "__main__":
    fuzz(lambda file: read_all(GgufFile.open(file)), sound_gguf(), WORDS)
