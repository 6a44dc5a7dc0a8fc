"""From one storage to another: quantise a tensor, or repack a file's blocks for speed."""

from typing import Literal

import torch
from jaxtyping import BFloat16, Float, Float32
from torch import Tensor

from hyprstream.models.quant import packed
from hyprstream.models.quant.blocks import FORMATS
from hyprstream.models.quant.groups import Groups
from hyprstream.models.quant.memory import WeightMemory
from hyprstream.models.quant.tiles import (
    GROUP,
    Encoded,
    build_tiles,
    kernel_is_available,
)
from hyprstream.models.quant.weight import BlockWeight, DenseWeight, Weight

Quantization = Literal["int8", "int4"]

_BITS = {"int8": 8, "int4": 4}
# Bits per weight that hold the codes of a block format. The groups of Q6_K are of 16
# weights, half a tile's, so it is rounded again, to 8 bits.
_TILED_BITS = {
    "Q4_0": 4, "Q4_1": 4, "Q4_K": 4, "Q5_0": 8, "Q5_1": 8, "Q5_K": 8, "Q6_K": 8, "Q8_0": 8,
}  # fmt: skip

# Codes of all formats fit into these; those of the codebooks are bytes, from -127 to 113.
_PACKED = {
    name: packed.Form(bits=bits, group=group, zero=zero)
    for name, bits, group, zero in (
        ("Q4_0", 4, 32, 8), ("Q4_1", 4, 32, None), ("Q4_K", 4, 32, None),
        ("Q5_0", 8, 32, 16), ("Q5_1", 8, 32, None), ("Q5_K", 8, 32, None),
        ("Q2_K", 4, 16, None), ("Q3_K", 4, 16, 4), ("Q6_K", 8, 16, 32), ("Q8_0", 8, 32, 128),
        ("IQ4_NL", 8, 32, 128), ("IQ4_XS", 8, 32, 128),
    )
}  # fmt: skip


def quantize(
    weight: Float[Tensor, "O I"], to: Quantization, memory: WeightMemory | None = None
) -> Weight:
    """Round a matrix to groups of 32 weights, to nearest, with bf16 scales.

    `int4` is affine: scale and zero are chosen so that the 16 steps cover the group. `int8`
    is symmetric, about scale * (-127..127). Either way the error of a weight is at most half
    the scale of its group. Costs 5 and 9 bits per weight. A matrix whose rows are not a
    multiple of 32 long stays as it is, which its `kind` shows.

    Args:
        weight: The matrix.
        to: What to round it to.
        memory: Where weights of one model go; None gives it its own.
    """
    num_rows, width = weight.shape
    if width % GROUP:
        return DenseWeight(weight)
    bits = _BITS[to]

    if weight.device.type == "cpu" and packed.is_fast():
        return _pack_values(weight, to, memory)

    def encode(start: int, stop: int) -> Encoded:
        return _encode_values(weight[start:stop].to(torch.float32), bits)

    return build_tiles((num_rows, width), bits, to, encode)


def for_compute(
    weight: Weight,
    dtype: torch.dtype,
    *,
    rounds_rows: bool = True,
    memory: WeightMemory | None = None,
) -> Weight:
    """Choose the storage in which `weight` computes best with activations of `dtype`.

    Dense weights take the dtype. In bf16 on a CPU blocks are repacked, for the native kernels
    where these are fast (`packed.py`: rows are rounded to 8 bits), else for torch's 4-bit
    kernel: codes stay the same (but for Q6_K), scales become bf16, which is as exact as bf16
    weights are. Tiles take at most 1.65 times the memory of their blocks, for
    Q5_0, Q5_1 and Q5_K, whose codes they hold in 8 bits; a product with one row is 14 times
    faster for it. Otherwise blocks stay as they are, and exact.

    Args:
        weight: A weight as it was loaded.
        dtype: Dtype of the activations.
        rounds_rows: Whether products may round their rows to 8 bits.
        memory: Where weights of one model go; None gives it its own.
    """
    if isinstance(weight, DenseWeight):
        return DenseWeight(weight.tensor.to(dtype))
    if not isinstance(weight, BlockWeight) or weight.device.type != "cpu":
        return weight
    if dtype != torch.bfloat16:
        return weight
    if rounds_rows and packed.is_fast():
        return _pack_blocks(weight, memory)
    if weight.kind not in _TILED_BITS or not kernel_is_available():
        return weight
    bits = _TILED_BITS[weight.kind]

    def encode(start: int, stop: int) -> Encoded:
        return _encode_blocks(weight, start, stop, bits)

    return build_tiles(weight.shape, bits, weight.kind, encode)


def _pack_blocks(weight: BlockWeight, memory: WeightMemory | None) -> Weight:
    """Take over codes, and scales as halves."""
    layout = FORMATS[weight.kind]

    def encode(start: int, stop: int) -> Groups:
        return layout.unpack(weight.blocks[start:stop])

    return packed.pack(weight.shape, _PACKED[weight.kind], weight.kind, encode, memory)


def _pack_values(
    weight: Float[Tensor, "O I"], to: Quantization, memory: WeightMemory | None
) -> Weight:
    """Choose scales and offsets that are halves already, then round to the nearest code."""
    factor = packed.factor_for(2 * float(weight.abs().max()))
    form = packed.Form(bits=_BITS[to], group=GROUP, zero=None if to == "int4" else 128)

    def encode(start: int, stop: int) -> Groups:
        grouped = weight[start:stop].to(torch.float32).unflatten(1, (-1, GROUP))
        low, high = grouped.aminmax(dim=2)
        if to == "int4":
            offset = packed.rounded(low, factor, up=False)
            scale = packed.rounded((high - offset) / 15, factor, up=True)
            grouped = grouped - offset.unsqueeze(2)
            least, most = 0, 15
        else:
            offset = None
            scale = packed.rounded(torch.maximum(high, -low) / 127, factor, up=True)
            least, most = -127, 127
        step = torch.where(scale > 0, scale, 1.0)  # a group of equal weights needs no steps
        codes = (grouped / step.unsqueeze(2)).round_().clamp_(least, most).to(torch.int8)
        return Groups(codes=codes, scale=scale, offset=offset)

    num_rows, width = weight.shape
    return packed.pack((num_rows, width), form, to, encode, memory)


def _encode_blocks(weight: BlockWeight, start: int, stop: int, bits: int) -> Encoded:
    """Take over codes; round scales and zeros to bf16."""
    groups = FORMATS[weight.kind].unpack(weight.blocks[start:stop])
    if groups.codes.shape[2] != GROUP:
        return _encode_values(groups.dequantize(torch.float32), bits)
    scale = groups.scale.to(torch.bfloat16)
    codes = groups.codes.flatten(1)
    if bits == 4:
        if groups.offset is None:  # signed codes, from -8
            return (codes + 8).view(torch.uint8), scale, torch.zeros_like(scale)
        zero = groups.offset + 8 * groups.scale
        return codes.view(torch.uint8), scale, zero.to(torch.bfloat16)
    # (-128..127) + 128 without overflow: flip the sign bit.
    unsigned = codes.contiguous().view(torch.uint8) ^ 128
    return unsigned, scale, _zero_of_bytes(scale, groups.offset)


def _encode_values(w: Float32[Tensor, "R I"], bits: int) -> Encoded:
    """Choose scales and zeros of groups, then round to the nearest code."""
    grouped = w.unflatten(1, (-1, GROUP))
    low, high = grouped.aminmax(dim=2)
    if bits == 4:
        # Digits reach from zero - 8 scale to zero + 7 scale; the zero is rounded first.
        zero = ((8 * high + 7 * low) / 15).to(torch.bfloat16)
        offset = zero.to(torch.float32)
        scale = _round_up(torch.maximum((high - offset) / 7, (offset - low) / 8))
        first = -8
    else:
        scale = _round_up(torch.maximum(high, -low) / 127)
        zero = _zero_of_bytes(scale, None)
        offset = 17 * zero.to(torch.float32) - 8 * scale.to(torch.float32)
        first = -128
    step = scale.to(torch.float32)
    step = torch.where(step > 0, step, 1.0)  # a group of equal weights needs no steps
    codes = ((grouped - offset.unsqueeze(2)) / step.unsqueeze(2)).round_().sub_(first)
    codes = codes.clamp_(0, (1 << bits) - 1).flatten(1).to(torch.uint8)
    return codes, scale, zero


def _zero_of_bytes(
    scale: BFloat16[Tensor, "R G"], offset: Float32[Tensor, "R G"] | None
) -> BFloat16[Tensor, "R G"]:
    """Return the zero that both digits of an 8-bit code share.

    A code c is 16 (h - 8) + (l - 8) + 8 with digits h and l. The zero counts 16 times for
    the high digit and once for the low one, so that 17 zero = 8 scale + offset.
    """
    zero = 8 * scale.to(torch.float32)
    if offset is not None:
        zero = zero + offset
    return (zero / 17).to(torch.bfloat16)


def _round_up(scale: Float32[Tensor, "R G"]) -> BFloat16[Tensor, "R G"]:
    """Round to bf16, never below: a smaller scale would not reach the largest weight."""
    rounded = scale.to(torch.bfloat16)
    above = torch.nextafter(rounded, torch.full_like(rounded, torch.inf))
    return torch.where(rounded.to(torch.float32) < scale, above, rounded)
