"""Memory for weights that every token reads, in large pages where the system has them.

A token reads all weights once, in the order in which they were loaded. In pages of 4 KiB that
is tens of thousands of addresses to look up, in a virtual machine twice each, and what Python
had in the same tables is gone afterwards. Large pages take a five-hundredth of them.
"""

import contextlib
import mmap
from math import prod

import torch
from jaxtyping import UInt8
from torch import Tensor

_PAGE = 2 << 20
_PIECE = 64 << 20
_LINE = 64


class WeightMemory:
    """Hands out memory side by side, a piece at a time.

    A piece is given back with the last tensor in it. What no tensor has is never touched, and
    takes no memory.
    """

    def __init__(self) -> None:
        self._left: UInt8[Tensor, " bytes"] = torch.empty(0, dtype=torch.uint8)

    def zeros(self, *shape: int) -> UInt8[Tensor, "*shape"]:
        """Return bytes of zero, at the beginning of a cache line."""
        size = prod(shape)
        if size > len(self._left):
            self._left = _piece(max(size, _PIECE))
        taken = self._left[:size].view(shape)
        self._left = self._left[-(-size // _LINE) * _LINE :]
        return taken


def _piece(size: int) -> UInt8[Tensor, " size"]:
    """Map zeros that begin at a large page."""
    mapped = mmap.mmap(-1, size + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # of a system without them
            mapped.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.frombuffer(mapped, dtype=torch.uint8)
    begin = -memory.data_ptr() % _PAGE
    return memory[begin : begin + size]
