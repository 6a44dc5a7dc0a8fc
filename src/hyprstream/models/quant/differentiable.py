"""Products with constant weights and what adapters add to them, differentiable.

One step of autograd holds all products of the same rows. It keeps the rows, or what they are
made of, and x A of each adapter, which is narrow; the way back unpacks weights again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from hyprstream.models.forward import Factors
from hyprstream.models.quant.products import (
    Chunked,
    many_row_chunks,
    work_dtype,
)
from hyprstream.models.quant.together import multiply_all


@runtime_checkable
class Origin(Protocol):
    """How rows are made of other tensors, so that these are kept in their place."""

    def rows(self, *sources: Float[Tensor, "T _"]) -> Float[Tensor, "T I"]:
        """Make the rows."""
        ...

    def gradients(
        self, grad: Float[Tensor, "T I"], *sources: Float[Tensor, "T _"]
    ) -> Sequence[Float[Tensor, "T _"]]:
        """Return the gradients for the sources from that for the rows, in float32 or wider."""
        ...


def multiply(weight: Chunked, x: Float[Tensor, "*T I"]) -> Float[Tensor, "*T O"]:
    """Return x W^T in the dtype of `x`, with a gradient for `x` if it needs one."""
    flat = x.reshape(-1, x.shape[-1])
    if flat.requires_grad and torch.is_grad_enabled():
        (y,) = products([weight], [None], flat)
    else:
        direct = weight.direct(flat)
        y = _unpacked(weight, flat) if direct is None else direct
    return y.view(*x.shape[:-1], weight.shape[0])


def products(
    weights: Sequence[Chunked],
    factors: Sequence[Factors | None],
    *sources: Float[Tensor, "T _"],
    origin: Origin | None = None,
) -> tuple[Float[Tensor, "T _"], ...]:
    """Return x W^T + x A B for up to three weights, differentiable in `sources`, A and B.

    Args:
        weights: The constants.
        factors: A and B of each, if it has any.
        sources: x itself, or what `origin` makes it of; all of one dtype.
        origin: Makes x.
    """
    leaves = [tensor for each in factors if each is not None for tensor in (each.a, each.b)]
    scales = tuple(None if each is None else each.scale for each in factors)
    plan = _Plan(tuple(weights), scales, origin, len(sources))
    results: tuple[Tensor, ...] = _Products.apply(  # type: ignore[no-untyped-call]  # torch
        plan, *sources, *leaves
    )
    return results


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is computed.

    Attributes:
        weights: The constants.
        scales: The number of each that has factors; None of one that has none.
        origin: Makes the rows.
        num_sources: Of how many tensors.
    """

    weights: tuple[Chunked, ...]
    scales: tuple[float | None, ...]
    origin: Origin | None
    num_sources: int

    def rows(self, sources: Sequence[Tensor]) -> Float[Tensor, "T I"]:
        """Make the rows."""
        return sources[0] if self.origin is None else self.origin.rows(*sources)

    def factored(self) -> list[tuple[int, float]]:
        """Number the weights that have factors, with their scales."""
        return [(i, scale) for i, scale in enumerate(self.scales) if scale is not None]


class _Products(torch.autograd.Function):
    """The products of a plan, of sources followed by A and B of all factors."""

    @staticmethod
    def forward(  # type: ignore[explicit-override]  # typing.override is Python 3.12
        ctx: Any, plan: _Plan, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        sources, leaves = tensors[: plan.num_sources], tensors[plan.num_sources :]
        x = plan.rows(sources)
        wide = x.to(work_dtype(x))
        narrow = _narrow(wide, leaves[::2])
        added = _by_weight(plan, zip(narrow, leaves[1::2], strict=True))
        direct = multiply_all(plan.weights, x)
        found = []
        for i, weight in enumerate(plan.weights):
            if direct is None:
                found.append(_product(weight, x, wide, added[i]))
            else:
                found.append(_sum(direct[i], added[i], wide.dtype))
        ctx.plan = plan
        ctx.save_for_backward(*sources, *leaves, *narrow)
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[explicit-override]  # typing.override is Python 3.12
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        saved = ctx.saved_tensors
        sources, rest = saved[: plan.num_sources], saved[plan.num_sources :]
        num_leaves = 2 * len(plan.factored())
        leaves, narrow = rest[:num_leaves], rest[num_leaves:]
        wants_sources = any(ctx.needs_input_grad[1 : 1 + plan.num_sources])
        way = _Back(plan, grads[0], wants_rows=wants_sources)
        added = _by_weight(plan, zip(narrow, leaves[1::2], strict=True))
        for i, grad in enumerate(grads):
            way.take(plan.weights[i], grad, added[i])
        leaf_grads: list[Tensor | None] = [None] * num_leaves
        if num_leaves:
            leaf_grads[::2] = way.of_a(plan.rows(sources), leaves[::2])
            leaf_grads[1::2] = way.of_b
        source_grads: Sequence[Tensor | None] = [None] * plan.num_sources
        if way.of_rows is not None and plan.origin is not None:
            source_grads = plan.origin.gradients(way.of_rows, *sources)
        elif way.of_rows is not None:
            source_grads = [way.of_rows.to(sources[0].dtype)]
        return None, *source_grads, *leaf_grads


@dataclass(frozen=True, slots=True)
class _Added:
    """What an adapter adds to a product: x A, times B, times the scale."""

    hidden: Float[Tensor, "T R"]
    b: Float[Tensor, "R O"]
    scale: float

    def scaled_b(self, start: int, stop: int) -> Float[Tensor, "R O"]:
        """Return B times the scale, of some outputs, as `hidden` is multiplied with."""
        part = self.b[:, start:stop].to(self.hidden.dtype)
        return part if self.scale == 1 else part * self.scale


def _by_weight(plan: _Plan, parts: Iterable[tuple[Tensor, Tensor]]) -> list[_Added | None]:
    found: list[_Added | None] = [None] * len(plan.weights)
    for (i, scale), (hidden, b) in zip(plan.factored(), parts, strict=True):
        found[i] = _Added(hidden, b, scale)
    return found


def _unpacked(weight: Chunked, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"]:
    with torch.no_grad():
        return _product(weight, x, x.to(work_dtype(x)), None)


def _product(
    weight: Chunked, x: Float[Tensor, "T I"], wide: Float[Tensor, "T I"], added: _Added | None
) -> Float[Tensor, "T O"]:
    """Return x W^T and what is added, unpacking W to the dtype of `wide` chunk by chunk."""
    y = x.new_empty(x.shape[0], weight.shape[0])
    for start, stop in many_row_chunks(weight, x):
        part = wide @ weight.chunk(start, stop, wide.dtype).t()
        if added is not None:
            part.addmm_(added.hidden, added.scaled_b(start, stop))
        y[:, start:stop] = part
    return y


def _sum(y: Float[Tensor, "T O"], added: _Added | None, dtype: torch.dtype) -> Float[Tensor, "T O"]:
    if added is None:
        return y
    return y.to(dtype).addmm_(added.hidden, added.scaled_b(0, y.shape[1])).to(y.dtype)


def _narrow(
    wide: Float[Tensor, "T I"], a: Sequence[Float[Tensor, "I _"]]
) -> list[Float[Tensor, "T _"]]:
    """Return x A of each, from one product."""
    if not a:
        return []
    joined = a[0] if len(a) == 1 else torch.cat(list(a), dim=1)
    return list((wide @ joined.to(wide.dtype)).split([each.shape[1] for each in a], dim=1))


class _Back:
    """The way back through the products of the same rows, weight by weight.

    Attributes:
        of_rows: The gradient for the rows, added up in float32 at least; None if not wanted.
        of_b: The gradient of each B so far.
    """

    def __init__(self, plan: _Plan, grad: Float[Tensor, "T _"], *, wants_rows: bool) -> None:
        self._dtype = work_dtype(grad)
        self._flowing: list[Tensor] = []
        self.of_b: list[Tensor] = []
        self.of_rows: Tensor | None = None
        if wants_rows:
            shape = grad.shape[0], plan.weights[0].shape[1]
            dtype = torch.promote_types(self._dtype, torch.float32)
            self.of_rows = torch.zeros(shape, dtype=dtype, device=grad.device)

    def take(self, weight: Chunked, grad: Float[Tensor, "T O"], added: _Added | None) -> None:
        """Pass the gradient of one product's results on, chunk by chunk."""
        flowing = of_b = None
        if added is not None:
            flowing = torch.zeros_like(added.hidden)
            of_b = torch.empty_like(added.b)
        if self.of_rows is None and added is None:
            return
        for start, stop in many_row_chunks(weight, grad):
            part = grad[:, start:stop].to(self._dtype)
            if self.of_rows is not None:
                _add_product(self.of_rows, part, weight.chunk(start, stop, self._dtype))
            if added is not None and flowing is not None and of_b is not None:
                flowing.addmm_(part, added.scaled_b(start, stop).t())
                of_b[:, start:stop] = (added.hidden.t() @ part).mul_(added.scale)
        if flowing is not None and of_b is not None:
            self._flowing.append(flowing)
            self.of_b.append(of_b)

    def of_a(
        self, x: Float[Tensor, "T I"], a: Sequence[Float[Tensor, "I _"]]
    ) -> list[Float[Tensor, "I _"]]:
        """Return the gradient of each A; add what flows through A to that of the rows."""
        joined = torch.cat(self._flowing, dim=1)
        # Laid out as A is: each rank in one piece.
        by_rank = (joined.t() @ x.to(joined.dtype)).split([each.shape[1] for each in a])
        if self.of_rows is not None:
            side = torch.cat([each.to(joined.dtype).t() for each in a])
            _add_product(self.of_rows, joined, side)
        return [grad.to(each.dtype).t() for grad, each in zip(by_rank, a, strict=True)]


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
