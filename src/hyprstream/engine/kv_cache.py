"""Keys and values of one sequence, so that each token is computed once."""

import torch
from jaxtyping import Float
from torch import Tensor

from hyprstream.models.attention import mixed_values
from hyprstream.models.config import ModelConfig

_FIRST_CAPACITY = 256


class SequenceCache:
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
        assert end <= self._limit, f"{end} positions in a context of {self._limit}"
        keys = self._keys[layer] = self._grown(self._keys[layer], end)
        values = self._values[layer] = self._grown(self._values[layer], end)
        keys[self._length : end] = k
        values[self._length : end] = v
        return mixed_values(
            self._layers[layer], q, keys[:end], values[:end], num_before=self._length
        )

    def _grown(self, stored: Float[Tensor, "L K D"], needed: int) -> Float[Tensor, "L2 K D"]:
        if needed <= stored.shape[0]:
            return stored
        capacity = min(max(needed, 2 * stored.shape[0]), self._limit)
        grown = stored.new_empty(capacity, *self._shape)
        grown[: self._length] = stored[: self._length]
        return grown
