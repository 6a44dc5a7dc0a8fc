"""Keys and values in 8 bits: what the codes mean, and how they lie. The reference, in torch.

Each 32 numbers of a head have a scale, the smallest bfloat16 that is not below their largest
magnitude / 127; a number is about code * scale. Numbers of which one is not finite get a scale
that is none, those that are all smaller than 2^-100 count as zeros.

Sixteen consecutive places make a tile: what the kernels read at a time. For each head it holds

    keys     [D / 4][16 places][4] codes, 128 above their own
    values   [4][D][4 places] codes, with a sign

and after them [D / 32][16 places] scales, in both. Products of four codes, one of each place or
of one place, are then added up by one instruction, for sixteen places or sixteen channels at a
time. `kernels/attention_codes.h` reads it.
"""

from typing import NamedTuple

import torch
from jaxtyping import BFloat16, Float, Float32, Int, Int8, UInt8
from torch import Tensor

from hyprstream.kernels.native import CODE_TILE

GROUP = 32
"""Numbers with one scale."""

TILE = CODE_TILE
"""Places that lie together."""

_QUAD = 4
_LARGEST = 127
_OFFSET = 128
_LEAST = 2.0**-100
_NONE = 0x7FC0  # a bfloat16 that is not a number


class Parts(NamedTuple):
    """Memory for keys or values, as codes and as scales.

    Attributes:
        codes: Those of all tiles and heads.
        scales: The same.
    """

    codes: Tensor
    scales: BFloat16[Tensor, "N K G 16"]


def tile_bytes(width: int) -> int:
    """Return what a tile takes for one head of this width."""
    return TILE * (width + width // GROUP * torch.bfloat16.itemsize)


def quantised(
    x: Float[Tensor, "*T D"],
) -> tuple[Float32[Tensor, "*T D"], BFloat16[Tensor, "*T G"]]:
    """Return the codes of numbers, whole ones from -127 to 127, and the scales."""
    grouped = x.float().unflatten(-1, (-1, GROUP))
    most = grouped.abs().amax(dim=-1, keepdim=True)
    is_zero, is_finite = most < _LEAST, most.isfinite()
    # Bits, because what torch makes of NaN in bfloat16 depends on how many numbers there are.
    bits = ((most / _LARGEST).view(torch.int32) + 0xFFFF) >> 16  # up to the next of bfloat16
    bits = bits.masked_fill(is_zero, 0).masked_fill(~is_finite, _NONE)
    scales = bits.to(torch.int16).view(torch.bfloat16)
    codes = (grouped * (1.0 / scales.float())).round().masked_fill(is_zero | ~is_finite, 0.0)
    return codes.flatten(-2), scales[..., 0]


def dequantised(
    codes: Tensor, scales: BFloat16[Tensor, "*T G"], dtype: torch.dtype
) -> Float[Tensor, "*T D"]:
    """Return the numbers that codes stand for, each rounded once."""
    wide = torch.float32 if dtype == torch.float16 else dtype
    grouped = codes.to(wide).unflatten(-1, (-1, GROUP))
    numbers: Tensor = (grouped * scales.to(wide)[..., None]).to(dtype)
    return numbers.flatten(-2)


def key_parts(memory: UInt8[Tensor, "N K B"], width: int) -> Parts:
    """Return the parts of memory for keys of this width."""
    codes: Tensor = memory[..., : TILE * width].unflatten(-1, (width // _QUAD, TILE, _QUAD))
    return Parts(codes, _scales(memory, width))


def value_parts(memory: UInt8[Tensor, "N K B"], width: int) -> Parts:
    """Return the parts of memory for values of this width."""
    codes = memory[..., : TILE * width].view(torch.int8)
    return Parts(codes.unflatten(-1, (TILE // _QUAD, width, _QUAD)), _scales(memory, width))


def _scales(memory: UInt8[Tensor, "N K B"], width: int) -> BFloat16[Tensor, "N K G 16"]:
    scales = memory[..., TILE * width :].view(torch.bfloat16)
    by_group: Tensor = scales.unflatten(-1, (width // GROUP, TILE))
    return by_group


def write_keys(parts: Parts, places: Int[Tensor, " T"], k: Float[Tensor, "T K D"]) -> None:
    """Store keys."""
    tiles, lanes = places // TILE, places % TILE
    codes, scales = quantised(k)
    quads = (codes + _OFFSET).to(torch.uint8).unflatten(-1, (-1, _QUAD))
    parts.codes[tiles, :, :, lanes] = quads
    parts.scales[tiles, :, :, lanes] = scales


def write_values(parts: Parts, places: Int[Tensor, " T"], v: Float[Tensor, "T K D"]) -> None:
    """Store values."""
    tiles, lanes = places // TILE, places % TILE
    codes, scales = quantised(v)
    parts.codes[tiles, :, lanes // _QUAD, :, lanes % _QUAD] = codes.to(torch.int8)
    parts.scales[tiles, :, :, lanes] = scales


def read_keys(
    codes: UInt8[Tensor, "N K Q 16 4"], scales: BFloat16[Tensor, "N K G 16"], dtype: torch.dtype
) -> Float[Tensor, "L K D"]:
    """Return the keys of tiles, place by place."""
    signed = codes.to(torch.int16) - _OFFSET
    by_place = signed.permute(0, 3, 1, 2, 4).flatten(3)
    return _by_place(by_place, scales, dtype)


def read_values(
    codes: Int8[Tensor, "N K 4 D 4"], scales: BFloat16[Tensor, "N K G 16"], dtype: torch.dtype
) -> Float[Tensor, "L K D"]:
    """Return the values of tiles, place by place."""
    by_place = codes.permute(0, 2, 4, 1, 3).flatten(1, 2)
    return _by_place(by_place, scales, dtype)


def _by_place(
    codes: Tensor, scales: BFloat16[Tensor, "N K G 16"], dtype: torch.dtype
) -> Float[Tensor, "L K D"]:
    numbers = dequantised(codes, scales.permute(0, 3, 1, 2), dtype)
    return numbers.flatten(0, 1)
