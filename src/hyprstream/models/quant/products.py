"""Products with quantised matrices, bounded in memory and differentiable in the input.

A matrix is dequantised a chunk of rows at a time, so that no product ever holds a whole
matrix in a wide type. The backward pass dequantises again instead of saving anything.
"""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

# Up to so many rows of input, unpacking costs more than multiplying: float32 is then both
# faster and more exact than rounding the weights to a 16-bit type first (measured on CPU).
_FEW_ROWS = 16
# Weights per chunk: 1 MiB in float32 is still in the level-2 cache when it is multiplied.
_CHUNK_WEIGHTS = 1 << 18
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


def multiply(weight: Chunked, x: Float[Tensor, "*T I"]) -> Float[Tensor, "*T O"]:
    """Return x W^T in the dtype of `x`, with a gradient for `x` if it needs one."""
    flat = x.reshape(-1, x.shape[-1])
    if flat.requires_grad and torch.is_grad_enabled():
        y: Tensor = _Multiply.apply(flat, weight)  # type: ignore[no-untyped-call]  # torch
    else:
        direct = weight.direct(flat)
        y = _unpacked(weight, flat) if direct is None else direct
    return y.view(*x.shape[:-1], weight.shape[0])


def dequantize(weight: Chunked, dtype: torch.dtype) -> Float[Tensor, "O I"]:
    """Return the whole matrix, computed chunk by chunk."""
    chunks = row_chunks(weight.shape)
    return torch.cat([weight.chunk(start, stop, dtype) for start, stop in chunks])


def row_chunks(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Cut the rows of a matrix into runs of cache size, or 64 rows if that is more."""
    num_rows, width = shape
    step = max(1, _CHUNK_WEIGHTS // (width * _ROW_MULTIPLE)) * _ROW_MULTIPLE
    for start in range(0, num_rows, step):
        yield start, min(start + step, num_rows)


def _unpacked(weight: Chunked, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"]:
    wide = x
    if x.shape[0] <= _FEW_ROWS:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
    parts = [
        F.linear(wide, weight.chunk(start, stop, wide.dtype))
        for start, stop in row_chunks(weight.shape)
    ]
    return torch.cat(parts, dim=1).to(x.dtype)


class _Multiply(torch.autograd.Function):
    """x W^T whose backward pass dequantises W again instead of saving it."""

    @staticmethod
    def forward(  # type: ignore[explicit-override]  # typing.override is Python 3.12
        ctx: Any, x: Tensor, weight: Chunked
    ) -> Tensor:
        ctx.weight = weight
        return _unpacked(weight, x)  # the product whose gradient is taken, to the last bit

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[explicit-override]  # typing.override is Python 3.12
        ctx: Any, grad_y: Tensor
    ) -> tuple[Tensor, None]:
        weight: Chunked = ctx.weight
        # Partial sums over chunks are added in float32 and rounded once.
        wide = torch.promote_types(grad_y.dtype, torch.float32)
        grad_x = grad_y.new_zeros((grad_y.shape[0], weight.shape[1]), dtype=wide)
        for start, stop in row_chunks(weight.shape):
            grad_x += grad_y[:, start:stop] @ weight.chunk(start, stop, grad_y.dtype)
        return grad_x.to(grad_y.dtype), None
