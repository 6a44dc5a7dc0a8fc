"""The compiled kernels, from Python: addresses and sizes, nothing else."""

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

FILE = Path(__file__).with_name("libnative.so")
"""Where the installation puts what it compiles from the C++ files."""

Kind = Literal[0, 1]
"""What numbers are: 0 for float32, 1 for bfloat16."""

KINDS: Mapping[str, Kind] = {"float32": 0, "bfloat16": 1}
"""By the name of their dtype in torch."""


class Kernels:
    """What the C++ files offer. Nothing is checked: whoever calls knows that sizes are right."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        self.low_rank = library.hyprstream_low_rank
        """Products with low-rank adapters: see `low_rank.cpp` for the parameters."""
        self.low_rank.argtypes = [size, *[pointer] * 4, *[size] * 4, *[pointer] * 3]
        self.low_rank.restype = None
        self.peaks = library.hyprstream_peaks
        """Largest numbers of rows, and their places."""
        self.peaks.argtypes = [size, pointer, size, size, pointer, pointer]
        self.peaks.restype = None
        self.attend = library.hyprstream_attend
        """Attention over blocks: see `attention.cpp` for the parameters."""
        real = ctypes.c_float
        self.attend.argtypes = [size, *[pointer] * 4, size, *[pointer] * 3, *[size] * 5, real, real]
        self.attend.restype = None


def open_kernels(file: Path = FILE) -> Kernels | None:
    """Load what was compiled; None if nothing was, or for another machine."""
    try:
        return Kernels(ctypes.CDLL(str(file)))
    except (OSError, AttributeError):
        return None
