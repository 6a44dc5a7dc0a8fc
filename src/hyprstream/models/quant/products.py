"""Products with quantised matrices, bounded in memory.

A matrix is dequantised a chunk of rows at a time, so that no product ever holds a whole
matrix in a wide type.
"""

from collections.abc import Iterator
from functools import cache
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from hyprstream.models.native import kernels

# Up to so many rows of input, unpacking costs more than multiplying: float32 is then both
# faster and more exact than rounding the weights to a 16-bit type first (measured on CPU).
_FEW_ROWS = 16
# Weights per chunk: 1 MiB in float32 is still in the level-2 cache when it is multiplied.
_CHUNK_WEIGHTS = 1 << 18
# With many rows a product takes its time from arithmetic, and wants to be large: 16 MiB.
_MANY_ROWS = 64
_MAX_CHUNK_WEIGHTS = 1 << 20
# Chunks start at multiples of the largest tile (tiles.py).
_ROW_MULTIPLE = 64


@runtime_checkable
class Chunked(Protocol):
    """What a quantised weight offers to the products below."""

    @property
    def shape(self) -> tuple[int, int]:
        """Logical shape (O, I)."""
        ...

    def chunk(self, start: int, stop: int, dtype: torch.dtype) -> Float[Tensor, "R I"]:
        """Dequantise rows `start` to `stop`; `start` is a multiple of 64."""
        ...

    def direct(self, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"] | None:
        """Multiply without dequantising if that is faster for this `x`, else None."""
        ...


def dequantize(weight: Chunked, dtype: torch.dtype) -> Float[Tensor, "O I"]:
    """Return the whole matrix, computed chunk by chunk."""
    chunks = row_chunks(weight.shape)
    return torch.cat([weight.chunk(start, stop, dtype) for start, stop in chunks])


def row_chunks(
    shape: tuple[int, int], num_weights: int = _CHUNK_WEIGHTS
) -> Iterator[tuple[int, int]]:
    """Cut the rows of a matrix into runs of so many weights, or 64 rows if that is more."""
    num_rows, width = shape
    step = max(1, num_weights // (width * _ROW_MULTIPLE)) * _ROW_MULTIPLE
    for start in range(0, num_rows, step):
        yield start, min(start + step, num_rows)


def prefers_float32(x: Tensor) -> bool:
    """Tell whether rows in bfloat16 are multiplied sooner, and more exactly, as float32."""
    if x.dtype != torch.bfloat16 or x.device.type != "cpu":
        return False
    return not bfloat16_is_fast()


@cache
def bfloat16_is_fast() -> bool:
    """Tell whether the processor multiplies matrices of bfloat16 faster than of float32.

    Measured on large matrices, GFLOP/s of one core: an Intel processor whose AMX is hidden 74
    against 111, an AMD one with AVX512_BF16 190 against 77. AMX is taken to be faster.
    """
    native = kernels()
    if native is None or has_amx():
        return True
    return bool(native.multiplies_bfloat16())


def has_amx() -> bool:
    """Tell whether the processor has Intel's instructions for whole tiles of a matrix."""
    return bool(torch.cpu._is_amx_tile_supported())


def work_dtype(x: Float[Tensor, "T _"]) -> torch.dtype:
    """Return the dtype in which rows are multiplied soonest."""
    if x.shape[0] <= _FEW_ROWS or prefers_float32(x):
        return torch.promote_types(x.dtype, torch.float32)
    return x.dtype


def many_row_chunks(weight: Chunked, x: Float[Tensor, "T _"]) -> Iterator[tuple[int, int]]:
    """Cut a matrix into chunks that suit so many rows."""
    return row_chunks(
        weight.shape, _CHUNK_WEIGHTS if x.shape[0] <= _MANY_ROWS else _MAX_CHUNK_WEIGHTS
    )
