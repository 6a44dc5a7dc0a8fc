"""Attention of rows with few tokens, in one call of the native kernel for each layer.

Where rows are few and short, torch spends its time on copies and calls. The kernel reads keys
and values where they lie, each query by itself, and nothing that a query does not see. The
equal in torch is `mixed_values`.
"""

from array import array
from collections.abc import Sequence
from ctypes import Array, addressof, c_void_p
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hyprstream.engine.kept import Kept
from hyprstream.engine.paged_cache import PagedCache
from hyprstream.engine.plan import Row
from hyprstream.kernels.native import KINDS, Kernels, Kind, NativeReads, open_kernels
from hyprstream.models.config import AttentionConfig, ModelConfig
from hyprstream.models.native import MAX_QUERIES

MAX_TOKENS = MAX_QUERIES
"""From so many tokens of a row on, products in torch are faster: they read each key once."""

_WIDTH_STEP = 16


class NativeAttention:
    """The kernel for one model and one kind of cache.

    Attributes:
        in_codes: Whether that keeps keys and values in 8 bits.
    """

    def __init__(
        self, kernels: Kernels, kind: Kind, config: ModelConfig, *, in_codes: bool
    ) -> None:
        self._kernels = kernels
        self._kind = kind
        self._heads = config.num_heads, config.num_kv_heads, config.head_width
        self.in_codes = in_codes

    @classmethod
    def open(cls, config: ModelConfig, cache: PagedCache) -> "NativeAttention | None":
        """Return the kernel, if it was compiled and is for such a model and cache."""
        kind = KINDS.get(str(cache.dtype).removeprefix("torch."))
        if cache.device.type != "cpu" or kind is None or config.head_width % _WIDTH_STEP:
            return None
        kernels = open_kernels()
        return (
            None if kernels is None else cls(kernels, kind, config, in_codes=cache.kind == "int8")
        )

    def share(self, rows: Sequence[Row], tokens: slice, block_tokens: int) -> "NativeShare":
        """Work out, once for all layers, where the keys of neighbours lie.

        Args:
            rows: The neighbours.
            tokens: Their tokens within the step.
            block_tokens: Positions per block.
        """
        ends: list[int] = []
        tables: list[int] = []
        blocks: list[int] = []
        for row in rows:
            num_tokens = len(row.token_ids)
            ends += range(row.start + 1, row.start + 1 + num_tokens)
            tables += (len(blocks),) * num_tokens
            blocks += row.blocks
        arrays = array("i", ends), array("i", tables), array("i", blocks)
        return NativeShare(self, tokens, block_tokens, *arrays)

    def attend(
        self, config: AttentionConfig, q: Float[Tensor, "Q H D"], kept: Kept, share: "NativeShare"
    ) -> Float[Tensor, "Q H D"]:
        """Mix the values for queries; sums and shares are float32."""
        q = q.contiguous()
        mixed = torch.empty_like(q)
        rest = (
            q.data_ptr(),
            kept.keys.data_ptr(),
            kept.values.data_ptr(),
            mixed.data_ptr(),
            len(share.ends),
            share.ends.buffer_info()[0],
            share.tables.buffer_info()[0],
            share.blocks.buffer_info()[0],
            *self._heads,
            share.block_tokens,
            config.window or 0,
            config.scale,
            config.softcap or 0.0,
        )
        if self.in_codes:
            self._kernels.attend_codes(self._kind, self._kernels.instructions, *rest)
        else:
            assert q.dtype == kept.keys.dtype, f"queries are {q.dtype}, keys {kept.keys.dtype}"
            self._kernels.attend(self._kind, *rest)
        return mixed


@dataclass(frozen=True, slots=True, eq=False)
class NativeShare:
    """Neighbours in a step.

    Attributes:
        kernel: Attends for them.
        tokens: Their tokens within the step.
        block_tokens: Positions per block.
        ends: For each query, one above its position.
        tables: For each query, where the blocks of its row begin.
        blocks: Those of all rows, one row after the other.
    """

    kernel: NativeAttention
    tokens: slice
    block_tokens: int
    ends: "array[int]"
    tables: "array[int]"
    blocks: "array[int]"

    def attend(
        self, config: AttentionConfig, q: Float[Tensor, "T H D"], kept: Kept
    ) -> Float[Tensor, "Q H D"]:
        """Mix the values for the queries of these rows."""
        return self.kernel.attend(config, q[self.tokens], kept, self)

    def reads(
        self, places: Int[Tensor, " T"], keys: "Array[c_void_p]", values: "Array[c_void_p]"
    ) -> NativeReads:
        """Describe the same to the kernel for whole layers.

        Args:
            places: Where new keys and values go.
            keys: Where those of each layer begin.
            values: The same.
        """
        return NativeReads(
            self.ends.buffer_info()[0],
            self.tables.buffer_info()[0],
            self.blocks.buffer_info()[0],
            self.block_tokens,
            places.data_ptr(),
            addressof(keys),
            addressof(values),
            self.kernel.in_codes,
        )
