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

from hyprstream.engine.config import KvCacheDtype
from hyprstream.engine.kept import Kept, Layout
from hyprstream.models.config import ModelConfig


def block_bytes(
    config: ModelConfig, dtype: torch.dtype, block_tokens: int, kind: KvCacheDtype = "auto"
) -> int:
    """Return what one block takes over all layers: a memory bound over this is `num_blocks`.

    Raises:
        InvalidSettingsError: The model's heads cannot be kept like that.
    """
    return 2 * config.num_layers * Layout.of(config, kind, dtype).size_bytes(block_tokens)


class PagedCache:
    """The KV blocks of a model.

    A position p of a sequence with the blocks b is at the place b[p // P] * P + p % P in
    every layer. Consecutive blocks are therefore one stretch of places.

    Attributes:
        block_tokens: Positions per block, P; in 8 bits a multiple of 16.
        dtype: Dtype of the keys and values that are written and read.
        kind: How they are kept.
        device: Where they live.
        layers: Those of each layer, by place.
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
        kind: KvCacheDtype = "auto",
    ) -> None:
        self.block_tokens = block_tokens
        self.dtype = dtype
        self.kind = kind
        self.device = device
        layout = Layout.of(config, kind, dtype)
        assert block_tokens % layout.step == 0, f"blocks of {block_tokens} positions in tiles"
        num_places = num_blocks * block_tokens
        self._memory = layout.allocate(config.num_layers, 2, num_places=num_places, device=device)
        self._block_rows = block_tokens // layout.step
        self.layers = tuple(layout.kept(both[0], both[1]) for both in self._memory)
        memories = [(kept.keys, kept.values) for kept in self.layers]
        self.addresses = tuple(
            (ctypes.c_void_p * config.num_layers)(*(both[i].data_ptr() for both in memories))
            for i in range(2)
        )

    @property
    def size_bytes(self) -> int:
        """Memory that is allocated."""
        return self._memory.nbytes

    def clear(self, blocks: Sequence[int]) -> None:
        """Set blocks to zero before their first position is written.

        Whole blocks are read and the positions that a query may not see are masked, which
        hides every number but not NaN; an earlier owner of the block may have left some.
        """
        size = self._block_rows
        for block in blocks:  # index_fill_ takes several times as long
            self._memory.narrow(2, block * size, size).zero_()

    def write(
        self,
        layer: int,
        places: Int[Tensor, " T"],
        k: Float[Tensor, "T K D"],
        v: Float[Tensor, "T K D"],
    ) -> Kept:
        """Store new keys and values, and return all of the layer's, by place."""
        kept = self.layers[layer]
        kept.write(places, k, v)
        return kept
