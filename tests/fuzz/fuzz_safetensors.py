"""Fuzz the safetensors reader: `python -m tests.fuzz.fuzz_safetensors SECONDS FOLDER`."""

import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]  # not installed

with atheris.instrument_imports(include=["hyprstream"]):
    from hyprstream.models.checkpoint import SafetensorsFile

from tests.fuzz.driver import fuzz
from tests.models.checkpoint.forge import sound_safetensors
from tests.models.checkpoint.judge import read_all

WORDS = (
    "true null NaN -1 1.0 [] {} [0] [1,0] 18446744073709551615 __metadata__ "
    '"dtype": "shape": "data_offsets": "F32" "F4" "BF16" "U8" "BOOL" "C64"'
)

if __name__ == "__main__":
    fuzz(lambda file: read_all(SafetensorsFile.open(file)), sound_safetensors(), WORDS.split())
