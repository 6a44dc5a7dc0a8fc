"""Causal attention over packed sequences as one step of autograd, in float32, on the CPU.

Kept are queries, keys and values. The way back computes the weights of a block of queries
again. Torch's own gradient on the CPU took twice as long (128 positions, bfloat16).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from hyprstream.models.config import AttentionConfig

# Weights of a block of queries: 8 MiB in float32.
_BLOCK_WEIGHTS = 1 << 21
_LEAST_QUERIES = 16


def attended(
    config: AttentionConfig,
    lengths: Sequence[int],
    q: Float[Tensor, "T H D"],
    k: Float[Tensor, "T K D"],
    v: Float[Tensor, "T K D"],
) -> Float[Tensor, "T H D"]:
    """Let every query see its own sequence up to itself, within the layer's window.

    Args:
        config: Scale, window and soft cap of the layer.
        lengths: Tokens of each sequence, in packing order.
        q: Queries of all sequences.
        k: Keys.
        v: Values.
    """
    y: Tensor = _Attend.apply(config, tuple(lengths), q, k, v)  # type: ignore[no-untyped-call]
    return y


@dataclass(frozen=True, slots=True)
class _Block:
    """Queries that are computed together, and the keys that they see.

    Attributes:
        queries: Which, among those of the sequence.
        keys: Which; no others are seen by any of the queries.
    """

    queries: slice
    keys: slice

    def unseen(self, window: int | None) -> Bool[Tensor, "Q L"]:
        """Mark the keys that a query does not see."""
        queries = torch.arange(self.queries.start, self.queries.stop)[:, None]
        keys = torch.arange(self.keys.start, self.keys.stop)
        unseen = keys > queries
        return unseen if window is None else unseen | (keys <= queries - window)


def _blocks(length: int, num_heads: int, window: int | None) -> Iterator[_Block]:
    step = max(_LEAST_QUERIES, _BLOCK_WEIGHTS // (num_heads * length))
    for start in range(0, length, step):
        stop = min(start + step, length)
        first = 0 if window is None else max(0, start - window + 1)
        yield _Block(slice(start, stop), slice(first, stop))


class _Sequence:
    """Queries, keys and values of one sequence, by head of the keys, in float32 or wider."""

    def __init__(self, config: AttentionConfig, q: Tensor, k: Tensor, v: Tensor) -> None:
        self._config = config
        self._groups = q.shape[1] // k.shape[1]
        self.q, self.k, self.v = q, _by_head(k), _by_head(v)

    def queries(self, x: Float[Tensor, "Q H D"]) -> Float[Tensor, "K N D"]:
        """Lay out what belongs to queries: by head of the keys, then by head, then by query."""
        wide: Tensor = _wide(x).unflatten(1, (-1, self._groups))  # Q K G D
        return wide.permute(1, 2, 0, 3).flatten(1, 2)

    def tokens(self, x: Float[Tensor, "K N D"]) -> Float[Tensor, "Q H D"]:
        """Undo `queries`."""
        heads: Tensor = x.unflatten(1, (self._groups, -1))  # K G Q D
        return heads.permute(2, 0, 1, 3).flatten(1, 2)

    def weights(
        self, block: _Block, q: Float[Tensor, "K N D"]
    ) -> tuple[Float[Tensor, "K N L"], Float[Tensor, "K N L"] | None]:
        """Return how much each query takes of each key, and what the soft cap passed on of it."""
        scores = torch.bmm(q, self.k[:, block.keys].transpose(1, 2)).mul_(self._config.scale)
        passed = None
        cap = self._config.softcap
        if cap is not None:
            bounded = scores.div_(cap).tanh_()
            passed = 1 - bounded.square()
            scores = bounded * cap
        unseen = block.unseen(self._config.window)
        scores.unflatten(1, (self._groups, -1)).masked_fill_(unseen, float("-inf"))
        return torch.softmax(scores, -1), passed

    def mixed(self, block: _Block) -> Float[Tensor, "Q H D"]:
        """Return what the queries of a block make of the values."""
        weights, _ = self.weights(block, self.queries(self.q[block.queries]))
        return self.tokens(torch.bmm(weights, self.v[:, block.keys]))

    def add_gradients(
        self, block: _Block, grad: Tensor, grad_k: Tensor, grad_v: Tensor
    ) -> Float[Tensor, "Q H D"]:
        """Add to the gradients of keys and values; return that of the queries of the block."""
        q, upstream = self.queries(self.q[block.queries]), self.queries(grad[block.queries])
        weights, passed = self.weights(block, q)
        grad_v[:, block.keys].baddbmm_(weights.transpose(1, 2), upstream)
        steep = torch.bmm(upstream, self.v[:, block.keys].transpose(1, 2)).mul_(weights)
        # Of the softmax: w (dw - sum of w dw).
        steep.sub_(weights.mul_(steep.sum(-1, keepdim=True))).mul_(self._config.scale)
        if passed is not None:
            steep.mul_(passed)
        grad_k[:, block.keys].baddbmm_(steep.transpose(1, 2), q)
        return self.tokens(torch.bmm(steep, self.k[:, block.keys]))


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[explicit-override]  # typing.override is Python 3.12
        ctx: Any,
        config: AttentionConfig,
        lengths: tuple[int, ...],
        q: Tensor,
        k: Tensor,
        v: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.plan = config, lengths
        y = torch.empty_like(q)
        for rows in _rows(lengths):
            sequence = _Sequence(config, q[rows], k[rows], v[rows])
            for block in _blocks(rows.stop - rows.start, q.shape[1], config.window):
                y[rows][block.queries] = sequence.mixed(block)
        return y

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[explicit-override]  # typing.override is Python 3.12
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        config, lengths = ctx.plan
        q, k, v = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in (q, k, v)]
        for rows in _rows(lengths):
            sequence = _Sequence(config, q[rows], k[rows], v[rows])
            grad_k, grad_v = torch.zeros_like(sequence.k), torch.zeros_like(sequence.v)
            for block in _blocks(rows.stop - rows.start, q.shape[1], config.window):
                found = sequence.add_gradients(block, grad[rows], grad_k, grad_v)
                grads[0][rows][block.queries] = found
            grads[1][rows], grads[2][rows] = grad_k.transpose(0, 1), grad_v.transpose(0, 1)
        return None, None, *grads


def _rows(lengths: Sequence[int]) -> Iterator[slice]:
    start = 0
    for length in lengths:
        yield slice(start, start + length)
        start += length


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _by_head(x: Float[Tensor, "L K D"]) -> Float[Tensor, "K L D"]:
    return _wide(x).transpose(0, 1).contiguous()
