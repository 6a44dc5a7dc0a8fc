"""The compiled kernels, from Python: addresses and sizes, nothing else."""

import ctypes
import os
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal

from hyprstream.errors import InvalidSettingsError

FILE = Path(__file__).with_name("libnative.so")
"""Where the installation puts what it compiles from the C++ files."""

Kind = Literal[0, 1]
"""What numbers are: 0 for float32, 1 for bfloat16."""

KINDS: Mapping[str, Kind] = {"float32": 0, "bfloat16": 1}
"""By the name of their dtype in torch."""


INSTRUCTIONS_VARIABLE = "HYPRSTREAM_INSTRUCTIONS"
"""Environment variable that names the widest instructions that may be used."""


class Instructions(IntEnum):
    """What computes products, from the plainest to the widest: `Instructions` of instructions.h.

    Whichever do, products with weights are the same to the last bit; those of adapters are
    rounded otherwise by `AVX512_BF16`. `PLAIN` is there to be compared with; torch is faster.
    """

    PLAIN = 0
    AVX2 = 1
    AVX_VNNI = 2
    AVX512 = 3
    AVX512_BF16 = 4


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


class DenseMatrix(ctypes.Structure):
    """What the kernels know of a weight in bfloat16: `Dense` of dense.h."""

    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("outputs", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
    )


CODE_TILE = 16
"""Positions that lie together where keys and values are in 8 bits (`attention_codes.h`)."""

PLACES = ("q", "k", "v", "o", "gate", "up", "down")
"""The linear layers of a `NativeLayer`, in order."""


class NativeLinear(ctypes.Structure):
    """A linear layer: one of two kinds of weight, and a bias or nothing. `Linear` of layers.cpp."""

    _fields_ = (
        ("packed", ctypes.c_void_p),
        ("dense", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


class NativeLayer(ctypes.Structure):
    """A layer of a decoder: `Layer` of layers.cpp."""

    _fields_ = (
        ("linears", NativeLinear * len(PLACES)),
        ("norm", ctypes.c_void_p),
        ("mlp_norm", ctypes.c_void_p),
        ("q_norm", ctypes.c_void_p),
        ("k_norm", ctypes.c_void_p),
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("head_width", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("rope", ctypes.c_int64),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
    )


class NativeLowRank(ctypes.Structure):
    """What adapters add to a linear layer; zeros for nothing. `LowRank` of layers.cpp."""

    _fields_ = (
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("num_groups", ctypes.c_int64),
        ("ranks", ctypes.c_void_p),
        ("ends", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
    )


class NativeRotation(ctypes.Structure):
    """Cosines and sines of each row: `Rotation` of layers.cpp."""

    _fields_ = (
        ("cosines", ctypes.c_void_p),
        ("sines", ctypes.c_void_p),
        ("turned", ctypes.c_int64),
    )


class NativeReads(ctypes.Structure):
    """Where keys and values lie, and the new ones of each row go: `Reads` of layers.cpp."""

    _fields_ = (
        ("ends", ctypes.c_void_p),
        ("tables", ctypes.c_void_p),
        ("blocks", ctypes.c_void_p),
        ("block_tokens", ctypes.c_int64),
        ("places", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("in_codes", ctypes.c_int64),
    )


class Kernels:
    """What the C++ files offer. Nothing is checked: whoever calls knows that sizes are right.

    Attributes:
        available: The widest instructions that this processor has.
        instructions: Those that products are to use: `available`, or fewer where the
            environment says so.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, size, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
        self.low_rank = _function(
            library, "low_rank", size, *[pointer] * 4, *[size] * 3, *[pointer] * 3, size, size
        )
        """Adds low-rank adapters to rows: see `low_rank.cpp`."""
        self.peaks = _function(library, "peaks", size, pointer, size, size, pointer, pointer)
        """Largest numbers of rows, and their places: see `peaks.cpp`."""
        self.attend = _function(
            library,
            "attend",
            *[size, *[pointer] * 4, size, *[pointer] * 3, *[size] * 5, real, real],
        )
        """Attention over blocks: see `attention.cpp`."""
        self.attend_codes = _function(
            library,
            "attend_codes",
            *[size, size, *[pointer] * 4, size, *[pointer] * 3, *[size] * 5, real, real],
        )
        """The same over keys and values in 8 bits: see `attention_codes.cpp`."""
        self.keep_codes = _function(
            library, "keep_codes", *[size, *[pointer] * 3, *[size] * 3, pointer, pointer]
        )
        """Writes keys and values in 8 bits: see `attention_codes.cpp`."""
        self.rms_norm = _function(
            library, "rms_norm", size, pointer, pointer, real, size, size, pointer
        )
        """Normalises rows: see `rows.cpp`."""
        self.rotate = _function(library, "rotate", size, *[pointer] * 3, *[size] * 4, pointer)
        """Turns pairs of channels: see `rows.cpp`."""
        self.gate = _function(library, "gate", size, pointer, pointer, size, pointer)
        """silu(x) * up: see `rows.cpp`."""
        self.rms_norm_gradient = _function(
            library, "rms_norm_gradient", size, pointer, pointer, real, pointer, size, size, pointer
        )
        """The way back through `rms_norm`: see `row_gradients.cpp`."""
        self.gate_gradient = _function(
            library, "gate_gradient", size, *[pointer] * 3, size, pointer, pointer
        )
        """The way back through `gate`: see `row_gradients.cpp`."""
        self.cross_entropy = _function(
            library, "cross_entropy", size, *[pointer] * 3, size, size, pointer
        )
        """The cross entropy of logits, and its gradient: see `cross_entropy.cpp`."""
        self.packed_products = _function(
            library, "packed_products", size, pointer, *[size] * 3, *[pointer] * 6
        )
        """Products with up to three `PackedMatrix`: see `quantised.cpp`."""
        self.packed_peaks = _function(
            library, "packed_peaks", size, pointer, *[size] * 3, *[pointer] * 3
        )
        """Largest numbers of products with a `PackedMatrix`: see `quantised.cpp`."""
        self.packed_rows = _function(library, "packed_rows", size, pointer, size, size, pointer)
        """A `PackedMatrix` as numbers: see `unpacked.cpp`."""
        self.dense_products = _function(
            library, "dense_products", size, pointer, *[size] * 3, *[pointer] * 6
        )
        """Products with up to three `DenseMatrix`: see `dense.cpp`."""
        self.layers = _function(
            library, "layers", pointer, size, *[pointer] * 3, *[size] * 3, pointer
        )
        """Whole layers of a decoder, some `NativeLayer`: see `layers.cpp`."""
        self.multiplies_bfloat16 = _function(library, "multiplies_bfloat16", result=size)
        """1 if this processor's products of bfloat16 are worth while, AMX left aside."""
        has = _function(library, "has_instructions", size, result=size)
        self.available = tuple(each for each in Instructions if has(each))
        """Those that this processor has, from the plainest; all but `PLAIN` may be missing."""
        self.instructions = self.widest(_allowed())

    def widest(self, allowed: Instructions) -> Instructions:
        """Return the widest instructions of this processor that are no wider than `allowed`."""
        return max(each for each in self.available if each <= allowed)

    @property
    def packed_is_fast(self) -> bool:
        """Whether there are instructions that the products of `PackedMatrix` are written for."""
        return self.instructions > Instructions.PLAIN


def _allowed() -> Instructions:
    name = os.environ.get(INSTRUCTIONS_VARIABLE, "")
    if not name:
        return max(Instructions)
    try:
        return Instructions[name.upper()]
    except KeyError:
        names = ", ".join(each.name.lower() for each in Instructions)
        raise InvalidSettingsError(
            f"{INSTRUCTIONS_VARIABLE} is {name!r}, which is none of {names}",
            hint=f"Unset {INSTRUCTIONS_VARIABLE}: what the processor has is found out by itself.",
        ) from None


def _function(
    library: ctypes.CDLL,
    name: str,
    *parameters: type,
    result: type | None = None,
) -> Any:
    function = getattr(library, f"hyprstream_{name}")
    function.argtypes, function.restype = parameters, result
    return function


def open_kernels(file: Path = FILE) -> Kernels | None:
    """Load what was compiled; None if nothing was, or for another machine."""
    try:
        return Kernels(ctypes.CDLL(str(file)))
    except (OSError, AttributeError):
        return None
