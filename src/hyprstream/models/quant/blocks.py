"""Block formats of GGUF: bytes of a file to codes, scales and offsets.

The layouts are those of `ggml-common.h` (`block_q4_0` to `block_iq4_xs`) and the formulas
those of the `dequantize_row_*` functions in `ggml-quants.c`, both of llama.cpp. float32
results equal those of gguf-py bit for bit (`test_blocks.py`).

Every unpacker works on whole rows of blocks at once and copies packed bytes to contiguous
memory first: torch is several times slower on short strided runs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int8, UInt8
from torch import Tensor

from hyprstream.models.quant.groups import Groups

Bytes = UInt8[Tensor, "n b"]
Unpacked = tuple[Int8[Tensor, "n e"], Float32[Tensor, "n g"], Float32[Tensor, "n g"] | None]

# The codebook of IQ4_NL and IQ4_XS: `kvalues_iq4nl` in ggml-common.h.
_CODEBOOK = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFormat:
    """How one kind of block is laid out.

    Attributes:
        name: As ggml calls it.
        num_weights: Weights per block.
        size_bytes: Bytes per block.
        unpack_blocks: Turns blocks, one per row, into codes, scales and offsets.
    """

    name: str
    num_weights: int
    size_bytes: int
    unpack_blocks: Callable[[Bytes], Unpacked]

    def unpack(self, rows: UInt8[Tensor, "O B"]) -> Groups:
        """Unpack rows of a matrix, each a whole number of blocks."""
        num_rows, row_bytes = rows.shape
        num_blocks = row_bytes // self.size_bytes
        blocks = rows.reshape(num_rows * num_blocks, self.size_bytes)
        codes, scale, offset = self.unpack_blocks(blocks)
        groups = (num_rows, num_blocks * scale.shape[1])
        return Groups(
            codes=codes.reshape(*groups, self.num_weights // scale.shape[1]),
            scale=scale.reshape(groups),
            offset=None if offset is None else offset.reshape(groups),
        )


def _half(blocks: Bytes, start: int) -> Float32[Tensor, "n 1"]:
    return blocks[:, start : start + 2].contiguous().view(torch.float16).to(torch.float32)


def _fields(packed: UInt8[Tensor, "n b"], bits: int, run: int) -> UInt8[Tensor, "n e"]:
    """Split bytes into fields of `bits`: all lowest fields of `run` bytes, then the next."""
    runs = packed.contiguous().unflatten(1, (-1, run))
    mask = (1 << bits) - 1
    fields = [(runs >> shift) & mask for shift in range(0, 8, bits)]
    return torch.stack(fields, dim=-2).flatten(1)


def _bits(packed: UInt8[Tensor, "n b"]) -> UInt8[Tensor, "n e"]:
    """Split bytes into bits, lowest first; eight at a time in one 64-bit word."""
    words = packed.to(torch.int64) * 0x0101010101010101
    words &= 0x8040201008040201 - (1 << 64)  # byte k keeps bit k
    return words.view(torch.uint8).clamp_(max=1)


def _signed(codes: UInt8[Tensor, "n e"], zero: int) -> Int8[Tensor, "n e"]:
    return codes.view(torch.int8).sub_(zero)


def _q4_0(blocks: Bytes) -> Unpacked:
    return _signed(_fields(blocks[:, 2:], 4, 16), 8), _half(blocks, 0), None


def _q4_1(blocks: Bytes) -> Unpacked:
    return _signed(_fields(blocks[:, 4:], 4, 16), 0), _half(blocks, 0), _half(blocks, 2)


def _q5_0(blocks: Bytes) -> Unpacked:
    codes = _fields(blocks[:, 6:], 4, 16) | (_bits(blocks[:, 2:6]) << 4)
    return _signed(codes, 16), _half(blocks, 0), None


def _q5_1(blocks: Bytes) -> Unpacked:
    codes = _fields(blocks[:, 8:], 4, 16) | (_bits(blocks[:, 4:8]) << 4)
    return _signed(codes, 0), _half(blocks, 0), _half(blocks, 2)


def _q8_0(blocks: Bytes) -> Unpacked:
    return blocks[:, 2:].view(torch.int8), _half(blocks, 0), None


def _q2_k(blocks: Bytes) -> Unpacked:
    scales = blocks[:, :16].contiguous()
    scale = _half(blocks, 80) * (scales & 15).to(torch.float32)
    minimum = _half(blocks, 82) * (scales >> 4).to(torch.float32)
    return _signed(_fields(blocks[:, 16:80], 2, 32), 0), scale, minimum.neg_()


def _q3_k(blocks: Bytes) -> Unpacked:
    low = _fields(blocks[:, 32:96], 2, 32)
    high = _fields(blocks[:, :32], 1, 32)
    # Sixteen 6-bit scales: low nibbles in bytes 0 to 7, high bit pairs in bytes 8 to 11.
    packed = blocks[:, 96:108].t().contiguous()  # inner loops over blocks, not over 4 bytes
    nibbles = torch.cat((packed[:8] & 15, packed[:8] >> 4))
    pairs = torch.cat([(packed[8:] >> shift) & 3 for shift in (0, 2, 4, 6)])
    scales = _signed(nibbles | (pairs << 4), 32).t().to(torch.float32)
    # A set bit of the mask means that 4 is not subtracted.
    return _signed(low | (high << 2), 4), _half(blocks, 108) * scales, None


def _scales_and_minima(blocks: Bytes) -> tuple[Float32[Tensor, "n 8"], Float32[Tensor, "n 8"]]:
    """Decode the head of Q4_K and Q5_K: `get_scale_min_k4` in ggml-quants.c."""
    packed = blocks[:, 4:16].t().contiguous()  # inner loops over blocks, not over 4 bytes
    low, middle, high = packed[:4], packed[4:8], packed[8:]
    scales = torch.cat((low & 63, (high & 15) | ((low >> 2) & 48)))
    minima = torch.cat((middle & 63, (high >> 4) | ((middle >> 2) & 48)))
    scale = _half(blocks, 0) * scales.t().to(torch.float32)
    minimum = _half(blocks, 2) * minima.t().to(torch.float32)
    return scale, minimum


def _q4_k(blocks: Bytes) -> Unpacked:
    scale, minimum = _scales_and_minima(blocks)
    return _signed(_fields(blocks[:, 16:], 4, 32), 0), scale, minimum.neg_()


def _q5_k(blocks: Bytes) -> Unpacked:
    scale, minimum = _scales_and_minima(blocks)
    codes = _fields(blocks[:, 48:], 4, 32) | (_fields(blocks[:, 16:48], 1, 32) << 4)
    return _signed(codes, 0), scale, minimum.neg_()


def _q6_k(blocks: Bytes) -> Unpacked:
    codes = _fields(blocks[:, :128], 4, 64) | (_fields(blocks[:, 128:192], 2, 32) << 4)
    scales = blocks[:, 192:208].view(torch.int8).to(torch.float32)
    return _signed(codes, 32), _half(blocks, 208) * scales, None


def _codebook(packed: UInt8[Tensor, "n b"]) -> Int8[Tensor, "n e"]:
    """Look up both nibbles of a byte at once, then order as `_fields(packed, 4, 16)`."""
    values = torch.tensor(_CODEBOOK, dtype=torch.int8, device=packed.device)
    pairs = torch.stack((values.repeat(16), values.repeat_interleave(16)), dim=-1)
    table = pairs.view(torch.int16).flatten()
    found = table.index_select(0, packed.flatten().to(torch.int32))
    codes = found.view(torch.int8).view(packed.shape[0], packed.shape[1] // 16, 16, 2)
    return codes.transpose(-1, -2).flatten(1)


def _iq4_nl(blocks: Bytes) -> Unpacked:
    return _codebook(blocks[:, 2:]), _half(blocks, 0), None


def _iq4_xs(blocks: Bytes) -> Unpacked:
    # Eight 6-bit scales: low nibbles in bytes 4 to 7, high bit pairs in bytes 2 and 3.
    scales = _fields(blocks[:, 4:8], 4, 1) | (_fields(blocks[:, 2:4], 2, 1) << 4)
    scale = _half(blocks, 0) * _signed(scales, 32).to(torch.float32)
    return _codebook(blocks[:, 8:]), scale, None


FORMATS: dict[str, BlockFormat] = {
    name: BlockFormat(name=name, num_weights=weights, size_bytes=size, unpack_blocks=unpack)
    for name, weights, size, unpack in (
        ("Q4_0", 32, 18, _q4_0),
        ("Q4_1", 32, 20, _q4_1),
        ("Q5_0", 32, 22, _q5_0),
        ("Q5_1", 32, 24, _q5_1),
        ("Q8_0", 32, 34, _q8_0),
        ("Q2_K", 256, 84, _q2_k),
        ("Q3_K", 256, 110, _q3_k),
        ("Q4_K", 256, 144, _q4_k),
        ("Q5_K", 256, 176, _q5_k),
        ("Q6_K", 256, 210, _q6_k),
        ("IQ4_NL", 32, 18, _iq4_nl),
        ("IQ4_XS", 256, 136, _iq4_xs),
    )
}
