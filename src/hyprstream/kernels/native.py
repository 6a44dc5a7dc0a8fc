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


class PackedMatrix(ctypes.Structure):
    """What the kernels know of a packed weight: `Packed` of packed.h."""

    _fields_ = (
        ("tiles", ctypes.c_void_p),
        ("outputs", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("bits", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("zero", ctypes.c_int64),
        ("factor", ctypes.c_float),
    )


class Kernels:
    """What the C++ files offer. Nothing is checked: whoever calls knows that sizes are right."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        self.low_rank = library.hyprstream_low_rank
        """Products with low-rank adapters: see `low_rank.cpp` for the parameters."""
        self.low_rank.argtypes = [size, *[pointer] * 4, *[size] * 3, *[pointer] * 3]
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
        self.rms_norm = library.hyprstream_rms_norm
        """Normalises rows."""
        self.rms_norm.argtypes = [size, pointer, pointer, real, size, size, pointer]
        self.rms_norm.restype = None
        self.rotate = library.hyprstream_rotate
        """Turns pairs of channels."""
        self.rotate.argtypes = [size, *[pointer] * 3, *[size] * 4, pointer]
        self.rotate.restype = None
        self.gate = library.hyprstream_gate
        """silu(x) * up."""
        self.gate.argtypes = [size, pointer, pointer, size, pointer]
        self.gate.restype = None
        self.packed_products = library.hyprstream_packed_products
        """Products with up to three `PackedMatrix`: see `quantised.cpp` for the parameters."""
        self.packed_products.argtypes = [size, pointer, *[size] * 3, *[pointer] * 6]
        self.packed_products.restype = None
        self.packed_rows = library.hyprstream_packed_rows
        """A `PackedMatrix` as numbers: see `quantised.cpp` for the parameters."""
        self.packed_rows.argtypes = [size, pointer, size, size, pointer]
        self.packed_rows.restype = None
        self.packed_is_fast = library.hyprstream_packed_is_fast
        """1 if this processor has the instructions that the products are written for."""
        self.packed_is_fast.argtypes = []
        self.packed_is_fast.restype = size


def open_kernels(file: Path = FILE) -> Kernels | None:
    """Load what was compiled; None if nothing was, or for another machine."""
    try:
        return Kernels(ctypes.CDLL(str(file)))
    except (OSError, AttributeError):
        return None
