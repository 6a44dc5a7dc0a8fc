"""Fuzz the reader of NanoVDB grids: `python -m tests.fuzz.fuzz_grid SECONDS FOLDER`.

Most of a grid is zeros, which a fuzzer would try in vain. An input that begins with a `g` is
therefore a list of changes to a sound grid; any other is a file.
"""

import struct
from pathlib import Path

import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]  # not installed
import numpy as np

with atheris.instrument_imports(include=["hyprstream"]):
    from tests.vdb.judge import MAX_BYTES, read_view

from hyprstream.vdb.layout import pack_tensors
from hyprstream.vdb.nanovdb.files import open_file
from hyprstream.vdb.nanovdb.reader import open_grid
from hyprstream.vdb.nanovdb.structures import aligned_zeros
from hyprstream.vdb.tensors import SparseTensor
from tests.fuzz.driver import fuzz

MARK = b"g"
CHANGE = struct.Struct("<IQ")
WIDTHS = (1, 2, 4, 8)
WORDS = ("NanoVDB0", "NanoVDB1", "NanoVDB2")


def _sound() -> np.ndarray:
    dense = np.arange(640, dtype=np.float32).reshape(32, 20)
    return pack_tensors({"a": SparseTensor.from_dense(dense, "float32", dense % 7 == 0)}).buffer


SOUND = _sound()


def _changed(changes: bytes) -> np.ndarray:
    """The sound grid with numbers put in: where, the logarithm of how wide, and what."""
    grid = aligned_zeros(len(SOUND))
    grid[:] = SOUND
    whole = len(changes) // CHANGE.size * CHANGE.size
    for where, number in CHANGE.iter_unpack(changes[:whole]):
        width = WIDTHS[where & 3]
        at = (where >> 2) % (len(grid) - 8)
        value = (number % 256**width).to_bytes(width, "little")
        grid[at : at + width] = np.frombuffer(value, np.uint8)
    return grid


def read_all(file: Path) -> None:
    data = file.read_bytes()
    if data.startswith(MARK):
        read_view(open_grid(_changed(data[1:])))
        return
    for view in open_file(file, MAX_BYTES):
        read_view(view)


if __name__ == "__main__":
    fuzz(read_all, MARK + CHANGE.pack(736 << 2, 0), WORDS)
