"""Keys and values of one sequence, so that each token is computed once."""

from array import array
from collections.abc import Sequence
from ctypes import addressof, c_void_p

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from hyprstream.engine.config import KvCacheDtype
from hyprstream.engine.kept import Kept, Layout
from hyprstream.kernels.native import NativeReads
from hyprstream.models import native
from hyprstream.models.attention import mixed_values
from hyprstream.models.config import ModelConfig
from hyprstream.models.forward import ReadsPlaces

_FIRST_CAPACITY = 256


class SequenceCache(ReadsPlaces):
    """An `Attention` for one sequence that arrives in pieces of any length.

    Call `advance` after each forward pass. Memory grows by doubling up to the model's
    context, so a short answer does not pay for a long context.

    Invariant, checked by `test_kv_cache.py`: outputs do not depend on how the sequence was
    cut into pieces.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        kind: KvCacheDtype = "auto",
    ) -> None:
        """Allocate the first positions.

        Args:
            config: How the layers attend.
            dtype: Dtype of the keys and values that are written and read.
            device: Where they live.
            kind: How they are kept.

        Raises:
            InvalidSettingsError: The model's heads cannot be kept like that.
        """
        self._attention = config.attention
        self._layout = Layout.of(config, kind, dtype)
        self._device = device
        self._limit = config.context_length
        self._length = 0
        self._capacity = min(_FIRST_CAPACITY, self._limit)
        self._stretch: _Stretch | None = None
        self._layers = [self._allocated(self._capacity) for _ in self._attention]

    @property
    def length(self) -> int:
        """Positions that are cached."""
        return self._length

    @property
    def size_bytes(self) -> int:
        """Memory that is allocated."""
        return sum(kept.keys.nbytes + kept.values.nbytes for kept in self._layers)

    def advance(self, num_tokens: int) -> None:
        """Keep the last `num_tokens` positions that every layer has attended with."""
        self._length += num_tokens

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "T H D"],
        k: Float[Tensor, "T K D"],
        v: Float[Tensor, "T K D"],
    ) -> Float[Tensor, "T H D"]:
        """Store the keys and values of the new positions and attend over all so far."""
        start, end = self._length, self._length + k.shape[0]
        self._grow(end)
        kept = self._layers[layer]
        kept.write(torch.arange(start, end, device=self._device), k, v)
        config = self._attention[layer]
        mixed = None
        if self._layout.kind == "int8":
            mixed = native.attend_codes(config, q, kept.keys, kept.values, start)
        if mixed is None:
            mixed = mixed_values(config, q, *kept.stretch(slice(0, end)), num_before=start)
        return mixed

    @override
    def reads(self, rows: Float[Tensor, "T C"]) -> NativeReads | None:
        """Return where keys and values lie; None where torch attends faster."""
        num_tokens, dtype = len(rows), self._layout.dtype
        if num_tokens > native.MAX_QUERIES:
            return None
        assert rows.dtype == dtype, f"rows are {rows.dtype}, keys {dtype}"
        self._grow(self._length + num_tokens)
        stretch = _Stretch(self._layers, self._capacity, self._length, num_tokens)
        stretch.reads.in_codes = self._layout.kind == "int8"
        self._stretch = stretch  # holds what the kernels read
        return stretch.reads

    def _grow(self, needed: int) -> None:
        """Make room for `needed` positions."""
        assert needed <= self._limit, f"{needed} positions in a context of {self._limit}"
        if needed <= self._capacity:
            return
        self._capacity = min(max(needed, 2 * self._capacity), self._limit)
        for i, old in enumerate(self._layers):  # of which the others are freed one by one
            new = self._allocated(self._capacity)
            filled = -(-self._length // self._layout.step)
            new.keys[:filled] = old.keys[:filled]
            new.values[:filled] = old.values[:filled]
            self._layers[i] = new

    def _allocated(self, num_places: int) -> Kept:
        step = self._layout.step
        num_places = -(-num_places // step) * step
        keys, values = (
            self._layout.allocate(num_places=num_places, device=self._device) for _ in range(2)
        )
        return self._layout.kept(keys, values)


class _Stretch:
    """Keys and values of one sequence, for the native kernels: all in one block.

    Attributes:
        reads: Where they are.
    """

    def __init__(
        self,
        layers: Sequence[Kept],
        capacity: int,
        start: int,
        num_tokens: int,
    ) -> None:
        """Describe them, for `num_tokens` new positions from `start` on."""
        self._ends = array("i", range(start + 1, start + 1 + num_tokens))
        self._zeros = array("i", bytes(4 * num_tokens))  # one block, from which all queries read
        self._places = array("q", range(start, start + num_tokens))
        self._addresses = [
            (c_void_p * len(layers))(*(kept.keys.data_ptr() for kept in layers)),
            (c_void_p * len(layers))(*(kept.values.data_ptr() for kept in layers)),
        ]
        self.reads = NativeReads(
            self._ends.buffer_info()[0],
            self._zeros.buffer_info()[0],
            self._zeros.buffer_info()[0],
            capacity,
            self._places.buffer_info()[0],
            *map(addressof, self._addresses),
        )
