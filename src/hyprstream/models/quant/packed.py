"""Packed weights: codes of 4 or 8 bits, laid out for the native kernels.

The layout, and what a weight is made of its code, scale and offset, are described in
`kernels/packed.h`; this module writes it, and reads it in torch where the kernel is not for
the reader. Products in bfloat16 round their inputs to 8 bits, each group of 16 or 32 with a
scale of its own; all others use exactly the values that the codes stand for.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int, Int8, UInt8
from torch import Tensor

from hyprstream.kernels.native import KINDS, PackedMatrix
from hyprstream.models.native import kernels
from hyprstream.models.quant import products
from hyprstream.models.quant.differentiable import multiply
from hyprstream.models.quant.groups import Groups
from hyprstream.models.quant.memory import WeightMemory
from hyprstream.models.quant.together import NativeWeight, multiply_all

TILE = 16
"""Outputs that lie side by side."""

_QUAD = 4
_HALF_BYTES = 2
# Scales are halves times a power of two that brings the largest close to the largest half.
_TOP_EXPONENT = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What codes are.

    Attributes:
        bits: 4 or 8 for each.
        group: Weights of a row that share a scale: 16 or 32.
        zero: The code of a weight of zero; None where groups have offsets instead.
    """

    bits: int
    group: int
    zero: int | None

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes of a group of a tile."""
        return TILE * self.group * self.bits // 8

    @property
    def group_bytes(self) -> int:
        """Bytes of a group of a tile."""
        return self.code_bytes + TILE * _HALF_BYTES * (1 if self.zero is not None else 2)


class PackedWeight(NativeWeight):
    """A weight in the layout of the native kernels. Constant, safe to read from any thread.

    Attributes:
        kind: Name of the format that the weight had, for people.
        shape: Logical shape (O, I); I is a multiple of the group.
    """

    def __init__(
        self,
        tiles: UInt8[Tensor, "tiles G bytes"],
        factor: float,
        *,
        form: Form,
        shape: tuple[int, int],
        kind: str,
    ) -> None:
        """Take over what `pack` made.

        Args:
            tiles: Contiguous.
            factor: Of all scales and offsets; a power of two.
            form: What codes are.
            shape: Logical shape (O, I).
            kind: Name of the format.
        """
        self._tiles = tiles
        self._factor = factor
        self._form = form
        self.shape = shape
        self.kind = kind
        zero = -1 if form.zero is None else form.zero
        data = tiles.data_ptr() if tiles.device.type == "cpu" else None
        super().__init__(PackedMatrix(data, *shape, form.bits, form.group, zero, factor), data)

    @property
    def size_bytes(self) -> int:
        """Bytes held in memory."""
        return self._tiles.nbytes

    @property
    def device(self) -> torch.device:
        """Where the weight lives."""
        return self._tiles.device

    def to(self, device: torch.device) -> "PackedWeight":
        """Return the weight on `device`."""
        return self._with(self._tiles.to(device), self.shape)

    def span(self, start: int, stop: int) -> "PackedWeight":
        """Return the rows from `start`, a multiple of 64, to `stop`, without a copy."""
        tiles = self._tiles[start // TILE : -(-stop // TILE)]
        return self._with(tiles, (stop - start, self.shape[1]))

    def matmul(self, x: Float[Tensor, "*T I"]) -> Float[Tensor, "*T O"]:
        """Return x W^T in the dtype of `x`, differentiable in `x`."""
        if x.ndim == 2:
            together = multiply_all((self,), x)
            if together is not None:
                return together[0]
        return multiply(self, x)

    def dequantize(self, dtype: torch.dtype) -> Float[Tensor, "O I"]:
        """Return the matrix."""
        return products.dequantize(self, dtype)

    def rows(self, ids: Int[Tensor, " T"], dtype: torch.dtype) -> Float[Tensor, "T I"]:
        """Return the rows `ids`."""
        form, tile, place = self._form, ids // TILE, ids % TILE
        codes = self._tiles[..., : form.code_bytes].unflatten(2, (-1, TILE, _QUAD))
        chosen = codes[tile, :, :, place].flatten(2)  # T G E, or half of it
        if form.bits == 4:
            chosen = torch.cat((chosen & 15, chosen >> 4), dim=2)
        halves = self._tiles[..., form.code_bytes :].view(torch.float16)
        halves = halves.unflatten(2, (-1, TILE))[tile, :, :, place].float() * self._factor
        w = (chosen.float() - (form.zero or 0)) * halves[:, :, :1]
        if form.zero is None:
            w += halves[:, :, 1:]
        flat: Tensor = w.flatten(1)
        return flat.to(dtype)

    def chunk(self, start: int, stop: int, dtype: torch.dtype) -> Float[Tensor, "R I"]:
        """Dequantise rows `start` to `stop`."""
        native, number = kernels(), _number(dtype)
        if native is None or number is None or self.device.type != "cpu":
            return self.rows(torch.arange(start, stop, device=self.device), dtype)
        matrix = torch.empty(stop - start, self.shape[1], dtype=dtype)
        native.packed_rows(number, matrix.data_ptr(), start, stop, self.address)
        return matrix

    def direct(self, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"] | None:
        """Multiply in the native kernel if there is one and `x` is bfloat16."""
        products = multiply_all((self,), x)
        return None if products is None else products[0]

    def _with(
        self, tiles: UInt8[Tensor, "tiles G bytes"], shape: tuple[int, int]
    ) -> "PackedWeight":
        return PackedWeight(tiles, self._factor, form=self._form, shape=shape, kind=self.kind)


def pack(
    shape: tuple[int, int],
    form: Form,
    kind: str,
    encode: Callable[[int, int], Groups],
    memory: WeightMemory | None = None,
) -> PackedWeight:
    """Lay out a matrix a chunk at a time.

    Scales and offsets are rounded to 11 bits, which loses nothing of those that are halves.

    Args:
        shape: Logical shape (O, I).
        form: What codes are.
        kind: Name of the format that the matrix had.
        encode: Yields rows, from its first argument to its second.
        memory: Where weights of one model go; None gives it its own.
    """
    num_rows, width = shape
    num_tiles, num_groups = -(-num_rows // TILE), width // form.group
    memory = WeightMemory() if memory is None else memory
    tiles = memory.zeros(num_tiles, num_groups, form.group_bytes)
    affine = torch.zeros(1 if form.zero is not None else 2, num_tiles * TILE, num_groups)
    for start, stop in products.row_chunks(shape):
        groups = encode(start, stop)
        affine[0, start:stop] = groups.scale
        if groups.offset is not None:
            affine[1, start:stop] = groups.offset
        codes = _tiled(groups.codes, form)
        tiles[start // TILE : -(-stop // TILE), :, : form.code_bytes] = codes
    factor = factor_for(float(affine.abs().max()))
    halves = tiles[..., form.code_bytes :].view(torch.float16)
    by_tile = (affine / factor).to(torch.float16).unflatten(1, (num_tiles, TILE))
    halves.copy_(by_tile.permute(1, 3, 0, 2).flatten(2))
    return PackedWeight(tiles, factor, form=form, shape=shape, kind=kind)


def factor_for(largest: float) -> float:
    """Return the power of two by which scales up to `largest` are divided to be halves."""
    if largest == 0.0 or not math.isfinite(largest):
        return 1.0
    exponent = math.frexp(largest)[1] - 1 - _TOP_EXPONENT
    return math.ldexp(1.0, max(exponent, -100))


def is_fast() -> bool:
    """Tell whether this processor multiplies packed weights faster than it unpacks them."""
    native = kernels()
    return native is not None and native.packed_is_fast


def _number(dtype: torch.dtype) -> int | None:
    return KINDS.get(str(dtype).removeprefix("torch."))


def _tiled(codes: Int8[Tensor, "R G E"], form: Form) -> UInt8[Tensor, "tiles G bytes"]:
    unsigned = (codes.to(torch.int16) + (form.zero or 0)).to(torch.uint8)
    missing = -codes.shape[0] % TILE
    padded = torch.nn.functional.pad(unsigned, (0, 0, 0, 0, 0, missing))
    # tiles 16 G quads 4, to tiles G quads 16 4
    by_tile = padded.unflatten(0, (-1, TILE)).unflatten(3, (-1, _QUAD)).permute(0, 2, 3, 1, 4)
    if form.bits == 4:
        half = by_tile.shape[2] // 2
        by_tile = by_tile[:, :, :half] | (by_tile[:, :, half:] << 4)
    flat: Tensor = by_tile.flatten(2)
    return flat


def rounded(values: Float32[Tensor, "R G"], factor: float, *, up: bool) -> Float32[Tensor, "R G"]:
    """Round to halves times `factor`, none below (`up`) or none above what it was."""
    exact = values / factor
    halves = exact.to(torch.float16)
    wrong = halves.float() < exact if up else halves.float() > exact
    beyond = torch.tensor(math.inf if up else -math.inf, dtype=torch.float16)
    return torch.where(wrong, torch.nextafter(halves, beyond), halves).float() * factor
