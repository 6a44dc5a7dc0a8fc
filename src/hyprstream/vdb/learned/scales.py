"""The scales that a stream can hold: powers of 2^(1/1024), the same float32 on every machine."""

from functools import cache
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from hyprstream.errors import InvalidAdapterError

PER_OCTAVE = 1024
"""Codes between a scale and twice it."""

MAX_CODE = 60 * PER_OCTAVE
"""The largest magnitude of a code: scales are within 2^-60 and 2^60."""

_BITS = 64


def scales(codes: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return 2^(code / 1024), rounded to float32 by integer arithmetic."""
    exponents, places = np.divmod(codes, PER_OCTAVE)
    return np.ldexp(_mantissas()[places], exponents.astype(np.int32))


def scale_codes(values: NDArray[np.floating], grain: int = 1) -> NDArray[np.int64]:
    """Return the codes of the nearest scales.

    Args:
        values: What is to be approximated, above 0.
        grain: Return multiples of this only; they take fewer bytes.

    Raises:
        InvalidAdapterError: A value is outside 2^-60 to 2^60.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithms = np.log2(values.astype(np.float64))
    if not (np.abs(logarithms) <= MAX_CODE // PER_OCTAVE - 1).all():
        raise InvalidAdapterError(
            "the adapter's values are too large or too small for its code",
            hint="Its training may have diverged; use an earlier version.",
        )
    return (np.rint(logarithms * (PER_OCTAVE / grain)) * grain).astype(np.int64)


@cache
def _mantissas() -> NDArray[np.float32]:
    """Return 2^(i / 1024) for i from 0 to 1023."""
    roots = [2 << _BITS]  # 2, then its square root, and so on, in fixed point
    for _ in range(10):
        roots.append(isqrt(roots[-1] << _BITS))
    table = []
    for i in range(PER_OCTAVE):
        product = 1 << _BITS
        for bit in range(10):
            if i >> bit & 1:
                product = product * roots[10 - bit] >> _BITS
        table.append(((product >> (_BITS - 24)) + 1 >> 1) / (1 << 23))
    return np.array(table, np.float32)
