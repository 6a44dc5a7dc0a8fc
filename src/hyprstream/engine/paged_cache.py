"""Keys and values of all running sequences, in blocks of a fixed number of positions.

Memory only: which block belongs to whom is the scheduler's business, and who reads which
positions that of `PagedAttention`. Allocated once, so memory never grows while serving.
Runs on the engine thread.
"""

import ctypes
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hyprstream.models.config import ModelConfig


def block_bytes(config: ModelConfig, dtype: torch.dtype, block_tokens: int) -> int:
    """Return what one block takes over all layers: a memory bound over this is `num_blocks`."""
    numbers = 2 * config.num_layers * config.num_kv_heads * config.head_width
    return numbers * block_tokens * dtype.itemsize


class PagedCache:
    """The KV blocks of a model.

    A position p of a sequence with the blocks b is at the place b[p // P] * P + p % P in
    every layer. Consecutive blocks are therefore one stretch of places.

    Attributes:
        block_tokens: Positions per block, P.
        dtype: Dtype of keys and values.
        device: Where they live.
        addresses: For each layer, where its keys begin and where its values do.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_blocks: int,
        block_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_tokens = block_tokens
        self.dtype = dtype
        self.device = device
        heads = (config.num_kv_heads, config.head_width)
        self._blocks = torch.empty(
            config.num_layers, 2, num_blocks, block_tokens, *heads, dtype=dtype, device=device
        )
        self._layers = [(both[0], both[1]) for both in self._blocks.flatten(2, 3)]
        self.addresses = tuple(
            (ctypes.c_void_p * config.num_layers)(*(layer[i].data_ptr() for layer in self._layers))
            for i in range(2)
        )

    @property
    def size_bytes(self) -> int:
        """Memory that is allocated."""
        return self._blocks.nbytes

    def clear(self, blocks: Sequence[int]) -> None:
        """Set blocks to zero before their first position is written.

        Whole blocks are read and the positions that a query may not see are masked, which
        hides every number but not NaN; an earlier owner of the block may have left some.
        """
        for block in blocks:  # index_fill_ takes several times as long
            self._blocks.select(2, block).zero_()

    def write(
        self,
        layer: int,
        places: Int[Tensor, " T"],
        k: Float[Tensor, "T K D"],
        v: Float[Tensor, "T K D"],
    ) -> tuple[Float[Tensor, "L K D"], Float[Tensor, "L K D"]]:
        """Store new keys and values, and return all of the layer's, by place."""
        keys, values = self._layers[layer]
        keys.index_copy_(0, places, k)
        values.index_copy_(0, places, v)
        return keys, values
