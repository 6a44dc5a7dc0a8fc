"""Attention over the KV blocks of a step's rows: one token each, a few drafts, or a prompt's chunk.

Three ways to attend, of one meaning (`mixed_values`):

- *Native*: rows with few tokens, where the kernel was compiled: `NativeAttention`. Without
  it they attend in one of the other ways.
- *Alone*: one row, one product. Consecutive blocks are read where they lie, others are
  gathered first.
- *Together*: rows with few tokens and short contexts are gathered, padded to the longest,
  and share one masked product. Where a product is so small, the call is what costs: on one
  core and SmolLM2's shape, 16 rows of 100 positions take half the time; from about 250
  positions on, gathering costs what it saves.

Everything that does not depend on the layer is worked out once per step.
Runs on the engine thread.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from hyprstream.engine.indices import indices
from hyprstream.engine.kept import Kept
from hyprstream.engine.native_attention import MAX_TOKENS, NativeAttention, NativeShare
from hyprstream.engine.paged_cache import PagedCache
from hyprstream.engine.plan import Row
from hyprstream.kernels.native import NativeReads
from hyprstream.models.attention import mixed_values
from hyprstream.models.config import AttentionConfig, ModelConfig
from hyprstream.models.forward import ReadsPlaces

_MAX_POSITIONS_TOGETHER = 256


class PagedAttention(ReadsPlaces):
    """An `Attention` for one step, whose rows are packed in the order given.

    Neighbours attend together if they have equally many tokens and contexts of about the
    same length: rows sorted by these are fastest. The results do not depend on it.

    Invariant, checked by `test_paged_attention.py`: each row gets what `PackedAttention`
    would give it on its whole sequence, whatever the cuts, the blocks and the other rows.
    """

    def __init__(
        self,
        config: ModelConfig,
        cache: PagedCache,
        rows: Sequence[Row],
        *,
        native: NativeAttention | None = None,
    ) -> None:
        """Work out what does not depend on the layer.

        Args:
            config: How the layers attend.
            cache: Where keys and values are.
            rows: The rows of the step.
            native: The kernel for rows with few tokens. A cache has it always or never: with
                it, no share reads what was not written, and blocks are not cleared.
        """
        size = cache.block_tokens
        self._layers = config.attention
        self._cache = cache
        places: list[int] = []
        for row in rows:
            blocks, end = row.blocks, row.start + len(row.token_ids)
            assert end <= len(blocks) * size, f"{end} positions in {len(blocks)} blocks"
            for position in range(row.start, end):
                places.append(blocks[position // size] * size + position % size)  # noqa: PERF401
        self._places = indices(places, cache.device)
        if native is None:
            cache.clear(_begun(rows, size))
        self._shares = {
            window: list(_shares(rows, window, config, cache, native))
            for window in {layer.window for layer in config.attention}
        }

    @override
    def reads(self, rows: Float[Tensor, "T C"]) -> NativeReads | None:
        """Return where keys and values lie; None unless the kernel attends for all rows."""
        assert len(rows) == len(self._places), f"{len(rows)} tokens in {len(self._places)} places"
        assert rows.dtype == self._cache.dtype, f"rows are {rows.dtype}, keys {self._cache.dtype}"
        shares = next(iter(self._shares.values()))  # which do not depend on the window, then
        if len(shares) > 1 or not isinstance(shares[0], NativeShare):
            return None
        return shares[0].reads(self._places, *self._cache.addresses)

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "T H D"],
        k: Float[Tensor, "T K D"],
        v: Float[Tensor, "T K D"],
    ) -> Float[Tensor, "T H D"]:
        """Store the keys and values of the new positions; each row attends over its own."""
        config = self._layers[layer]
        kept = self._cache.write(layer, self._places, k, v)
        mixed = [share.attend(config, q, kept) for share in self._shares[config.window]]
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


def _begun(rows: Sequence[Row], size: int) -> list[int]:
    """Return the blocks that rows begin and do not fill."""
    ends = [(row, row.start + len(row.token_ids)) for row in rows]
    return [
        row.blocks[end // size]
        for row, end in ends
        if end % size and row.start <= end // size * size
    ]


@runtime_checkable
class _Share(Protocol):
    """Consecutive tokens of the step that are attended for in one go."""

    def attend(
        self, config: AttentionConfig, q: Float[Tensor, "T H D"], kept: Kept
    ) -> Float[Tensor, "Q H D"]:
        """Mix the values for the queries of this share."""
        ...


@dataclass(frozen=True, slots=True)
class _Span:
    """A row, and the part of its context that its queries can see.

    Attributes:
        row: The row.
        first: First position that any of its queries sees.
        blocks: The blocks with the positions from there to the row's end.
    """

    row: Row
    first: int
    blocks: tuple[int, ...]

    def joins(self, others: Sequence["_Span"], size: int) -> bool:
        """Tell whether to attend together with `others`, whose block counts are similar."""
        num_tokens = len(self.row.token_ids)
        fewest, most = len(others[0].blocks), len(self.blocks)
        return (
            num_tokens == len(others[0].row.token_ids)
            and num_tokens <= MAX_TOKENS
            and most * size <= _MAX_POSITIONS_TOGETHER
            and fewest <= most <= 2 * fewest  # no more than half of a gathering is padding
        )


def _shares(
    rows: Sequence[Row],
    window: int | None,
    config: ModelConfig,
    cache: PagedCache,
    native: NativeAttention | None,
) -> Iterator[_Share]:
    """Divide the step: packed tokens in order, each in one share."""

    def is_native(row: Row) -> bool:
        return native is not None and len(row.token_ids) <= MAX_TOKENS

    begin = 0
    for few, run in groupby(rows, is_native):
        neighbours = list(run)
        end = begin + sum(len(row.token_ids) for row in neighbours)
        if native is not None and few:
            yield native.share(neighbours, slice(begin, end), cache.block_tokens)
        else:
            yield from _torch_shares(neighbours, begin, window, config, cache)
        begin = end


def _torch_shares(
    rows: Sequence[Row], begin: int, window: int | None, config: ModelConfig, cache: PagedCache
) -> Iterator[_Share]:
    """Divide neighbours whose first token is `begin`."""
    size = cache.block_tokens
    groups: list[list[_Span]] = []
    for row in rows:
        end = row.start + len(row.token_ids)
        first = 0 if window is None else max(0, row.start - window + 1)
        span = _Span(row, first, row.blocks[first // size : -(-end // size)])
        if groups and span.joins(groups[-1], size):
            groups[-1].append(span)
        else:
            groups.append([span])
    for spans in groups:
        tokens = slice(begin, begin + sum(len(span.row.token_ids) for span in spans))
        if len(spans) == 1:
            yield _alone(spans[0], tokens, cache)
        else:
            yield _together(spans, tokens, window, config, cache)
        begin = tokens.stop


@dataclass(frozen=True, slots=True)
class _Alone:
    """One row.

    Attributes:
        tokens: Its tokens within the step.
        block_tokens: Positions per block.
        gathered: Blocks to copy into one stretch; None where they are one already.
        stretch: Positions to attend over: places, or positions of what was gathered.
        num_before: How many of these come before the first query.
    """

    tokens: slice
    block_tokens: int
    gathered: Int[Tensor, " B"] | None
    stretch: slice
    num_before: int

    def attend(
        self, config: AttentionConfig, q: Float[Tensor, "T H D"], kept: Kept
    ) -> Float[Tensor, "Q H D"]:
        if self.gathered is None:
            k, v = kept.stretch(self.stretch)
        else:
            k, v = (x[self.stretch] for x in kept.gathered(self.gathered, self.block_tokens))
        return mixed_values(config, q[self.tokens], k, v, num_before=self.num_before)


def _alone(span: _Span, tokens: slice, cache: PagedCache) -> _Alone:
    blocks, size = span.blocks, cache.block_tokens
    is_stretch = blocks == tuple(range(blocks[0], blocks[0] + len(blocks)))
    begin = span.first % size + (blocks[0] * size if is_stretch else 0)
    num_before = span.row.start - span.first
    return _Alone(
        tokens=tokens,
        block_tokens=size,
        gathered=None if is_stretch else torch.tensor(blocks, device=cache.device),
        stretch=slice(begin, begin + num_before + len(span.row.token_ids)),
        num_before=num_before,
    )


@dataclass(frozen=True, slots=True)
class _Together:
    """Several rows with equally many tokens each.

    Query heads that share a key head count as so many more queries of it: each key is then
    read once for all of them. Below, `M` is a row's tokens times these heads.

    Attributes:
        tokens: Their tokens within the step.
        num_rows: How many rows, B.
        block_tokens: Positions per block.
        gathered: Blocks of all rows, each padded to the longest with its own last block.
        mask: Added to the scores: 0 where a query sees a position, else -inf. One row of it
            for all queries of a row with one token.
    """

    tokens: slice
    num_rows: int
    block_tokens: int
    gathered: Int[Tensor, " blocks"]
    mask: Float[Tensor, "B 1 _ L"]

    def attend(
        self, config: AttentionConfig, q: Float[Tensor, "T H D"], kept: Kept
    ) -> Float[Tensor, "Q H D"]:
        k, v = (
            x.unflatten(0, (self.num_rows, -1)).transpose(1, 2)  # B K L D
            for x in kept.gathered(self.gathered, self.block_tokens)
        )
        queries = q[self.tokens].unflatten(1, (k.shape[1], -1))
        queries = queries.unflatten(0, (self.num_rows, -1)).transpose(1, 2)  # B K Q G D
        mixed: Tensor = self._mix(config, queries.flatten(2, 3), k, v)
        mixed = mixed.unflatten(2, queries.shape[2:4]).transpose(1, 2)  # B Q K G D
        return mixed.flatten(2, 3).flatten(0, 1)

    def _mix(
        self,
        config: AttentionConfig,
        q: Float[Tensor, "B K M D"],
        k: Float[Tensor, "B K L D"],
        v: Float[Tensor, "B K L D"],
    ) -> Float[Tensor, "B K M D"]:
        if config.softcap is None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, scale=config.scale)
        scores = (q @ k.transpose(-1, -2)) * config.scale
        scores = torch.tanh(scores / config.softcap) * config.softcap + self.mask
        mixed: Tensor = scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype) @ v
        return mixed


def _together(
    spans: Sequence[_Span],
    tokens: slice,
    window: int | None,
    config: ModelConfig,
    cache: PagedCache,
) -> _Together:
    size, device = cache.block_tokens, cache.device
    num_blocks = max(len(span.blocks) for span in spans)
    padded = [
        block
        for span in spans
        for block in (*span.blocks, *span.blocks[-1:] * (num_blocks - len(span.blocks)))
    ]
    # Positions within each sequence. Padding counts on beyond the row's end: never seen.
    num_tokens = len(spans[0].row.token_ids)
    begins = [span.row.start - span.first // size * size for span in spans]
    queries = torch.tensor(begins, device=device)[:, None, None]  # B 1 1
    if num_tokens > 1:
        queries = queries + torch.arange(num_tokens, device=device)[:, None]  # B Q 1
    keys = torch.arange(num_blocks * size, device=device)  # L
    unseen = keys > queries
    if window is not None:
        unseen |= keys <= queries - window
    mask = torch.zeros(unseen.shape, dtype=cache.dtype, device=device)
    mask.masked_fill_(unseen, float("-inf"))
    if num_tokens > 1:
        mask = mask.repeat_interleave(config.num_heads // config.num_kv_heads, dim=1)
    return _Together(
        tokens=tokens,
        num_rows=len(spans),
        block_tokens=size,
        gathered=torch.tensor(padded, device=device),
        mask=mask[:, None],
    )
