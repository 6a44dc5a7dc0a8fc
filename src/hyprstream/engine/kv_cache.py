"""Keys and values of one sequence, so that each token is computed once."""

from array import array
from collections.abc import Sequence
from ctypes import addressof, c_void_p

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

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

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        self._layers = config.attention
        self._shape = (config.num_kv_heads, config.head_width)
        self._limit = config.context_length
        self._length = 0
        self._stretch: _Stretch | None = None
        capacity = min(_FIRST_CAPACITY, self._limit)
        self._keys = [
            torch.empty(capacity, *self._shape, dtype=dtype, device=device) for _ in self._layers
        ]
        self._values = [torch.empty_like(keys) for keys in self._keys]

    @property
    def length(self) -> int:
        """Positions that are cached."""
        return self._length

    @property
    def size_bytes(self) -> int:
        """Memory that is allocated."""
        return sum(tensor.nbytes for tensor in (*self._keys, *self._values))

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
        end = self._length + k.shape[0]
        keys, values = self._grown(layer, end)
        keys[self._length : end] = k
        values[self._length : end] = v
        return mixed_values(
            self._layers[layer], q, keys[:end], values[:end], num_before=self._length
        )

    @override
    def reads(self, rows: Float[Tensor, "T C"]) -> NativeReads | None:
        """Return where keys and values lie; None where torch attends faster."""
        num_tokens, dtype = len(rows), self._keys[0].dtype
        if num_tokens > native.MAX_QUERIES:
            return None
        assert rows.dtype == dtype, f"rows are {rows.dtype}, keys {dtype}"
        end = self._length + num_tokens
        layers = [self._grown(layer, end) for layer in range(len(self._keys))]
        self._stretch = _Stretch(layers, self._length, num_tokens)  # holds what the kernels read
        return self._stretch.reads

    def _grown(
        self, layer: int, needed: int
    ) -> tuple[Float[Tensor, "L K D"], Float[Tensor, "L K D"]]:
        """Return the keys and values of a layer, with room for `needed` positions."""
        assert needed <= self._limit, f"{needed} positions in a context of {self._limit}"
        for stored in (self._keys, self._values):
            old = stored[layer]
            if needed > old.shape[0]:
                capacity = min(max(needed, 2 * old.shape[0]), self._limit)
                stored[layer] = old.new_empty(capacity, *self._shape)
                stored[layer][: self._length] = old[: self._length]
        return self._keys[layer], self._values[layer]


class _Stretch:
    """Keys and values of one sequence, for the native kernels: all in one block.

    Attributes:
        reads: Where they are.
    """

    def __init__(
        self,
        layers: Sequence[tuple[Float[Tensor, "L K D"], Float[Tensor, "L K D"]]],
        start: int,
        num_tokens: int,
    ) -> None:
        """Describe them, for `num_tokens` new positions from `start` on."""
        self._ends = array("i", range(start + 1, start + 1 + num_tokens))
        self._zeros = array("i", bytes(4 * num_tokens))  # one block, from which all queries read
        self._places = array("q", range(start, start + num_tokens))
        self._addresses = [
            (c_void_p * len(layers))(*(layer[i].data_ptr() for layer in layers)) for i in range(2)
        ]
        self.reads = NativeReads(
            self._ends.buffer_info()[0],
            self._zeros.buffer_info()[0],
            self._zeros.buffer_info()[0],
            layers[0][0].shape[0],
            self._places.buffer_info()[0],
            *map(addressof, self._addresses),
        )
