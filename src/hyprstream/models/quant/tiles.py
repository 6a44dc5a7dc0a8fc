"""Tiles: 4-bit and 8-bit weights, laid out for torch's 4-bit CPU kernel.

`aten::_weight_int4pack_mm_for_cpu` multiplies few rows of bf16 several times faster than
any product that unpacks first. This module owns its layout:

    packed  [O / tile, D, tile / 2]  byte i of a tile holds row i (low) and i + tile/2 (high)
    scales  [I / 32, O, 2]           bf16 scale and zero of each group of 32

One digit means (digit - 8) * scale + zero. A 4-bit weight is one digit, D = I. An 8-bit
weight is two, D = 2 I: each group of 32 becomes 32 high digits, multiplied with 16 x, and
32 low ones, multiplied with x. The kernel thus adds both in float32 and rounds once.

The kernel's layout depends on the CPU. `_kernel_tile` finds it by trying; where there is
no such kernel the same storage is dequantised in chunks.
"""

import logging
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import BFloat16, Float, Int, UInt8
from torch import Tensor

from hyprstream.models.quant import products
from hyprstream.models.quant.differentiable import multiply

log = logging.getLogger(__name__)

GROUP = 32
_DEFAULT_TILE = 64
# The kernel's cost grows with rows of input times digits per weight; from here on,
# unpacking once and a bf16 matrix product cost less (measured with AMX).
_MAX_KERNEL_ROWS = 64

# Codes counted from 0, and scale and zero of each group, as in the table above.
Encoded = tuple[UInt8[Tensor, "R I"], BFloat16[Tensor, "R G"], BFloat16[Tensor, "R G"]]


class TiledWeight:
    """A weight in tiles of 4-bit digits. Constant, safe to read from any thread.

    Attributes:
        kind: Name of the format, for people.
        shape: Logical shape (O, I); I is a multiple of 32.
        bits: 4 or 8 per weight.
    """

    def __init__(
        self,
        packed: UInt8[Tensor, "tiles D half"],
        scales: BFloat16[Tensor, "G P 2"],
        *,
        shape: tuple[int, int],
        kind: str,
    ) -> None:
        self._packed = packed
        self._scales = scales
        self.shape = shape
        self.kind = kind
        self.bits = 4 * packed.shape[1] // shape[1]
        self._tile = 2 * packed.shape[2]

    @property
    def size_bytes(self) -> int:
        """Bytes held in memory."""
        return self._packed.nbytes + self._scales.nbytes

    @property
    def device(self) -> torch.device:
        """Where the weight lives."""
        return self._packed.device

    def to(self, device: torch.device) -> "TiledWeight":
        """Return the weight on `device`."""
        return TiledWeight(
            self._packed.to(device), self._scales.to(device), shape=self.shape, kind=self.kind
        )

    def span(self, start: int, stop: int) -> "TiledWeight":
        """Return the rows from `start`, a multiple of 64, to `stop`; scales are copied."""
        first, last = start // self._tile, -(-stop // self._tile)
        scales = self._scales[:, first * self._tile : last * self._tile]
        return TiledWeight(
            self._packed[first:last],
            scales.contiguous(),  # as the kernel wants them
            shape=(stop - start, self.shape[1]),
            kind=self.kind,
        )

    def matmul(self, x: Float[Tensor, "*T I"]) -> Float[Tensor, "*T O"]:
        """Return x W^T in the dtype of `x`, differentiable in `x`."""
        return multiply(self, x)

    def dequantize(self, dtype: torch.dtype) -> Float[Tensor, "O I"]:
        """Return the matrix."""
        return products.dequantize(self, dtype)

    def rows(self, ids: Int[Tensor, " T"], dtype: torch.dtype) -> Float[Tensor, "T I"]:
        """Return the rows `ids`."""
        half = self._tile // 2
        place = ids % self._tile
        digits = self._packed[ids // self._tile, :, place % half]  # T D
        digits = (digits >> (place // half * 4).to(torch.uint8).unsqueeze(1)) & 15
        scale, offset = self._affine(self._scales[:, ids].transpose(0, 1))  # T G
        digits = digits.unflatten(1, (scale.shape[1], -1)).flatten(0, 1)
        codes: Tensor = self._join(digits).unflatten(0, scale.shape)  # T G E
        w = codes.to(torch.float32).mul_(scale.unsqueeze(2)).add_(offset.unsqueeze(2))
        return w.flatten(1).to(dtype)

    def chunk(self, start: int, stop: int, dtype: torch.dtype) -> Float[Tensor, "R I"]:
        """Dequantise rows `start` to `stop`; the result is stored column by column."""
        first, last = start // self._tile, -(-stop // self._tile)
        packed = self._packed[first:last].transpose(0, 1).contiguous()  # D tiles half
        digits = torch.stack((packed & 15, packed >> 4), dim=2).flatten(1)  # D P
        scale, offset = self._affine(self._scales[:, first * self._tile : last * self._tile])
        codes = self._join(digits.unflatten(0, (scale.shape[0], -1)))  # G E P
        w = codes.to(torch.float32).mul_(scale.unsqueeze(1)).add_(offset.unsqueeze(1))
        return w.flatten(0, 1)[:, : stop - start].to(dtype).t()

    def direct(self, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"] | None:
        """Multiply with the 4-bit kernel where there is one and `x` suits it."""
        if x.dtype != torch.bfloat16 or x.shape[0] * self.bits // 4 > _MAX_KERNEL_ROWS:
            return None
        if self.device.type != "cpu" or self._tile != _kernel_tile():
            return None
        y = _kernel(x, self._packed, self._scales)
        return y[:, : self.shape[0]]

    def _affine(self, scales: BFloat16[Tensor, "A B 2"]) -> tuple[Tensor, Tensor]:
        """Return scale and offset for digits, or bytes of two, that count from 0."""
        # Contiguous, as torch does not vectorise over interleaved pairs.
        scale, zero = scales.movedim(-1, 0).contiguous().to(torch.float32)
        if self.bits == 4:
            return scale, zero - 8 * scale
        return scale, 17 * zero - 136 * scale

    def _join(self, digits: UInt8[Tensor, "A D *R"]) -> UInt8[Tensor, "A E *R"]:
        """Put together the two digits of each 8-bit code; inverse of `_split`."""
        if self.bits == 4:
            return digits
        return (digits[:, :GROUP] << 4) | digits[:, GROUP:]


def build_tiles(
    shape: tuple[int, int], bits: int, kind: str, encode: Callable[[int, int], Encoded]
) -> TiledWeight:
    """Lay out a matrix whose rows `encode(start, stop)` yields, a chunk at a time."""
    num_rows, width = shape
    tile = _kernel_tile() or _DEFAULT_TILE
    num_tiles = -(-num_rows // tile)
    packed: Tensor | None = None
    scales: Tensor | None = None
    for start, stop in products.row_chunks(shape):
        codes, scale, zero = encode(start, stop)
        if packed is None or scales is None:
            packed = codes.new_empty(num_tiles, width * bits // 4, tile // 2)
            scales = scale.new_zeros(width // GROUP, num_tiles * tile, 2)
        packed[start // tile : -(-stop // tile)] = _pack(_split(codes, bits), tile)
        scales[:, start:stop, 0] = scale.t()
        scales[:, start:stop, 1] = zero.t()
    assert packed is not None, "a matrix has at least one row"
    assert scales is not None
    return TiledWeight(packed, scales, shape=shape, kind=kind)


def kernel_is_available() -> bool:
    """Tell whether this CPU multiplies tiles without unpacking them."""
    return _kernel_tile() is not None


def _split(codes: UInt8[Tensor, "R I"], bits: int) -> UInt8[Tensor, "R D"]:
    """Write each code as one digit, or as two: 32 high digits, then 32 low ones."""
    if bits == 4:
        return codes
    grouped = codes.unflatten(1, (-1, GROUP))
    return torch.stack((grouped >> 4, grouped & 15), dim=2).flatten(1)


def _pack(digits: UInt8[Tensor, "R D"], tile: int) -> UInt8[Tensor, "tiles D half"]:
    missing = -digits.shape[0] % tile
    if missing:
        digits = F.pad(digits, (0, 0, 0, missing))
    halves: Tensor = digits.unflatten(0, (-1, 2, tile // 2))  # tiles 2 half D
    return (halves[:, 0] | (halves[:, 1] << 4)).transpose(1, 2).contiguous()


def _kernel(
    x: BFloat16[Tensor, "T I"],
    packed: UInt8[Tensor, "tiles D half"],
    scales: BFloat16[Tensor, "G P 2"],
) -> BFloat16[Tensor, "T P"]:
    num_tiles, num_digits, half = packed.shape
    group = GROUP
    if num_digits != x.shape[1]:
        group = 2 * GROUP
        grouped = x.unflatten(1, (-1, GROUP))
        x = torch.stack((grouped * 16, grouped), dim=2).flatten(1)
    flat = packed.view(num_tiles * half * 2, num_digits // 2)
    product: Callable[..., Tensor] = torch.ops.aten._weight_int4pack_mm_for_cpu
    return product(x.contiguous(), flat, group, scales)


@cache
def _kernel_tile() -> int | None:
    """Find out how many rows this CPU's kernel takes per tile; None if it cannot be used.

    The layout is an implementation detail of torch, so it is not assumed: the kernel's own
    packing of a pattern is compared with ours, and its product with a plain one.
    """
    rows, columns = torch.arange(128).unsqueeze(1), torch.arange(4 * GROUP)
    pattern = (rows * 7 + columns * 3 + rows * columns) % 16
    scales = torch.tensor([0.5, 2.0], dtype=torch.bfloat16).expand(4, 128, 2).contiguous()
    x = (columns % 5 - 2).to(torch.bfloat16).unsqueeze(0)
    expected = x.to(torch.float32) @ ((pattern - 8) * 0.5 + 2.0).t()
    try:
        theirs = torch.ops.aten._convert_weight_to_int4pack_for_cpu(pattern.to(torch.int32), 1)
        for tile in (64, 32):
            packed = _pack(pattern.to(torch.uint8), tile)
            if not torch.equal(packed.flatten(), theirs.flatten()):
                continue
            y = _kernel(x, packed, scales).to(torch.float32)
            return tile if torch.allclose(y, expected, rtol=1e-2, atol=1.0) else None
    except (RuntimeError, AttributeError) as error:  # not built in, or not for this CPU
        log.debug("no 4-bit kernel: %s", error)
    return None
