"""How the keys and values of a layer lie in memory: as they were computed, or in 8 bits."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from hyprstream.engine import eight_bits
from hyprstream.engine.config import KvCacheDtype
from hyprstream.errors import InvalidSettingsError
from hyprstream.models import native
from hyprstream.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Layout:
    """How much memory positions take, and which.

    Attributes:
        heads: Key heads of a layer, and numbers of each.
        kind: Whether keys and values are in 8 bits.
        dtype: That of the numbers which are computed.
    """

    heads: tuple[int, int]
    kind: KvCacheDtype
    dtype: torch.dtype

    @classmethod
    def of(cls, config: ModelConfig, kind: KvCacheDtype, dtype: torch.dtype) -> "Layout":
        """Return the layout for a model.

        Raises:
            InvalidSettingsError: Heads of such a width have no place in 8 bits.
        """
        if kind == "int8" and config.head_width % eight_bits.GROUP:
            raise InvalidSettingsError(
                f"engine.kv_cache_dtype is 'int8', and the model's heads are {config.head_width}"
                f" wide, which is no multiple of {eight_bits.GROUP}",
                hint="Leave engine.kv_cache_dtype at 'auto' for this model.",
            )
        return cls((config.num_kv_heads, config.head_width), kind, dtype)

    @property
    def step(self) -> int:
        """Positions that can only be had together."""
        return eight_bits.TILE if self.kind == "int8" else 1

    def size_bytes(self, num_places: int) -> int:
        """Return what keys, or values, of one layer take at so many places."""
        num_heads, width = self.heads
        if self.kind == "int8":
            return num_places // self.step * num_heads * eight_bits.tile_bytes(width)
        return num_places * num_heads * width * self.dtype.itemsize

    def allocate(self, *lead: int, num_places: int, device: torch.device) -> Tensor:
        """Return memory for as many keys, or values, as `lead` says, each of so many places."""
        num_heads, width = self.heads
        if self.kind == "int8":
            shape = num_places // self.step, num_heads, eight_bits.tile_bytes(width)
            return torch.empty(*lead, *shape, dtype=torch.uint8, device=device)
        return torch.empty(*lead, num_places, num_heads, width, dtype=self.dtype, device=device)

    def kept(self, keys: Tensor, values: Tensor) -> "Kept":
        """Return what lies in memory that was allocated."""
        if self.kind == "int8":
            return EightBits(keys, values, self)
        return Dense(keys, values)


class Kept(ABC):
    """Keys and values of one layer, by place.

    Attributes:
        keys: Their memory.
        values: The same.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    @abstractmethod
    def write(
        self, places: Int[Tensor, " T"], k: Float[Tensor, "T K D"], v: Float[Tensor, "T K D"]
    ) -> None:
        """Store new keys and values."""

    @abstractmethod
    def stretch(self, places: slice) -> tuple[Float[Tensor, "L K D"], Float[Tensor, "L K D"]]:
        """Return those at consecutive places."""

    @abstractmethod
    def gathered(
        self, blocks: Int[Tensor, " B"], size: int
    ) -> tuple[Float[Tensor, "L K D"], Float[Tensor, "L K D"]]:
        """Return those in blocks of so many places, one after the other."""


class Dense(Kept):
    """Numbers as they were computed."""

    @override
    def write(
        self, places: Int[Tensor, " T"], k: Float[Tensor, "T K D"], v: Float[Tensor, "T K D"]
    ) -> None:
        self.keys.index_copy_(0, places, k)
        self.values.index_copy_(0, places, v)

    @override
    def stretch(self, places: slice) -> tuple[Float[Tensor, "L K D"], Float[Tensor, "L K D"]]:
        return self.keys[places], self.values[places]

    @override
    def gathered(
        self, blocks: Int[Tensor, " B"], size: int
    ) -> tuple[Float[Tensor, "L K D"], Float[Tensor, "L K D"]]:
        keys, values = (
            x.unflatten(0, (-1, size)).index_select(0, blocks).flatten(0, 1)
            for x in (self.keys, self.values)
        )
        return keys, values


class EightBits(Kept):
    """Codes of 8 bits: everybody reads what they stand for, also who has just written them."""

    def __init__(self, keys: Tensor, values: Tensor, layout: Layout) -> None:
        super().__init__(keys, values)
        self._dtype, self._width = layout.dtype, layout.heads[1]
        self._key_parts = eight_bits.key_parts(keys, self._width)
        self._value_parts = eight_bits.value_parts(values, self._width)

    @override
    def write(
        self, places: Int[Tensor, " T"], k: Float[Tensor, "T K D"], v: Float[Tensor, "T K D"]
    ) -> None:
        if native.keep_codes(places, k, v, self.keys, self.values):
            return
        eight_bits.write_keys(self._key_parts, places, k)
        eight_bits.write_values(self._value_parts, places, v)

    @override
    def stretch(self, places: slice) -> tuple[Float[Tensor, "L K D"], Float[Tensor, "L K D"]]:
        first, last = places.start // eight_bits.TILE, -(-places.stop // eight_bits.TILE)
        keys, values = self._read(slice(first, last))
        within = slice(
            places.start - first * eight_bits.TILE, places.stop - first * eight_bits.TILE
        )
        return keys[within], values[within]

    @override
    def gathered(
        self, blocks: Int[Tensor, " B"], size: int
    ) -> tuple[Float[Tensor, "L K D"], Float[Tensor, "L K D"]]:
        num_tiles = size // eight_bits.TILE
        tiles = blocks[:, None] * num_tiles + torch.arange(num_tiles, device=blocks.device)
        return self._read(tiles.flatten())

    def _read(self, tiles: slice | Tensor) -> tuple[Tensor, Tensor]:
        k, v = self._key_parts, self._value_parts
        keys = eight_bits.read_keys(k.codes[tiles], k.scales[tiles], self._dtype)
        values = eight_bits.read_values(v.codes[tiles], v.scales[tiles], self._dtype)
        return keys, values
