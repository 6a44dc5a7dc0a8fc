"""An adapter in units of the learned code: integers in the forward pass, gradients behind them.

Factors are rounded with a dead zone and scales to those that a stream can hold; the gradient
passes both as if they were not there (arXiv:1308.3432). What is given back is what the
forward pass computed with, bit by bit.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from hyprstream.lora.ops import low_rank_product
from hyprstream.vdb.learned import PROXY_SLOPE, Pair, scale_codes, scales
from hyprstream.vdb.learned.scales import PER_OCTAVE
from hyprstream.vdb.learned.source import PairSource

DEAD_ZONE = 0.65
"""Below it is 0. Scales that learn make up for what it takes away."""

_LEAST_SIZE = 1e-6  # of the largest component; below it there is no direction to speak of
_OCTAVES = 0.4  # by which a scale moves while a factor moves by a step
_GRAIN_SHARE = 30.0  # the error of scales is to be this much smaller than that of values
_COARSEST_GRAIN = 64


class RoundedLayer:
    """One layer in units of its scales: p (K, I) and q (K, O), with gradients.

    Scales have gradients, too: the rate makes p and q smaller, and what that would take away
    from the components the scales give back.

    Args:
        part: The layer's components.
        step: At which they are rounded at first, in units of what the adapter adds.
        grain: Codes of scales are multiples of it.
        device: Where to train.
    """

    def __init__(self, part: PairSource, step: float, grain: int, device: torch.device) -> None:
        used = part.sizes > _LEAST_SIZE * part.sizes.max(initial=0.0)
        roots = np.sqrt(part.sizes[used])
        codes = scale_codes(step / roots, grain)
        self._grain = grain
        self._codes = torch.from_numpy(codes).to(device)
        self.shift = torch.zeros(len(codes), device=device, requires_grad=True)
        self.p, self.q = (
            torch.tensor(
                side[used] * (roots / scales(codes))[:, None], dtype=torch.float32, device=device
            ).requires_grad_()
            for side in (part.u, part.v)
        )

    def parameters(self) -> dict[str, Tensor]:
        """Name the leaves to optimise."""
        return {"p": self.p, "q": self.q, "scale": self.shift}

    def product(self, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"]:
        """Return what the rounded factors add."""
        factors: Tensor = _Scale.apply(  # type: ignore[no-untyped-call]  # torch
            self.shift, self._codes, self._grain
        )
        p, q = (_round(side) * factors[:, None] for side in (self.p, self.q))
        return low_rank_product(x, p, q)

    def bits(self) -> Float[Tensor, ""]:
        """Return the rate of both sides, as their squares tell it."""
        total = self.p.new_zeros(())
        for side in (self.p, self.q):
            squares = side.square().mean(dim=1)
            total = total + side.shape[1] / 2 * torch.log2(1 + PROXY_SLOPE * squares).sum()
        return total

    def pair(self, rank: int) -> Pair:
        """Return the components that are not nothing."""
        p, q = (_round(side).to("cpu", torch.int32).numpy() for side in (self.p, self.q))
        kept = p.any(axis=1) & q.any(axis=1)
        codes = _moved_codes(self.shift, self._codes, self._grain)
        return Pair(rank=rank, codes=codes[kept], p=p[kept], q=q[kept])


class RoundedLora:
    """A view of an adapter whose factors are rounded.

    Args:
        source: Its components, by path.
        step: At which they are rounded at first, in units of what the adapter adds.
        device: Where to train.
    """

    def __init__(self, source: Mapping[str, PairSource], step: float, device: torch.device) -> None:
        grain = grain_of(source, step)
        self.step_code = int(scale_codes(np.array([step]), grain)[0])
        self.layers = {
            path: RoundedLayer(part, step, grain, device) for path, part in source.items()
        }

    def parameters(self) -> dict[str, Tensor]:
        """Name the leaves to optimise."""
        return {
            f"{path}/{name}": parameter
            for path, layer in self.layers.items()
            for name, parameter in layer.parameters().items()
        }

    def bits(self) -> Float[Tensor, ""]:
        """Return the rate of all layers."""
        return torch.stack([layer.bits() for layer in self.layers.values()]).sum()

    def delta(self, path: str, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"] | None:
        """Return what to add to the output of the linear layer at `path` for input `x`."""
        layer = self.layers.get(path)
        return None if layer is None else layer.product(x)

    def select(self, rows: Int[Tensor, " N"]) -> "RoundedLora":  # noqa: ARG002
        """Return the view of chosen rows: all rows use the one adapter."""
        return self


class _Rounding(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[explicit-override]  # typing.override is Python 3.12
        ctx: Any,  # noqa: ARG004
        x: Tensor,
    ) -> Tensor:
        return torch.copysign(torch.floor(x.abs() + (1 - DEAD_ZONE)), x)

    @staticmethod
    def backward(  # type: ignore[explicit-override]  # typing.override is Python 3.12
        ctx: Any,  # noqa: ARG004
        grad: Tensor,
    ) -> Tensor:
        return grad


class _Scale(torch.autograd.Function):
    """The scales that a stream can hold, as many octaves away as `shift` says."""

    @staticmethod
    def forward(  # type: ignore[explicit-override]  # typing.override is Python 3.12
        ctx: Any, shift: Tensor, codes: Tensor, grain: int
    ) -> Tensor:
        factors = torch.from_numpy(scales(_moved_codes(shift, codes, grain))).to(shift.device)
        ctx.save_for_backward(factors)
        return factors

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[explicit-override]  # typing.override is Python 3.12
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, None, None]:
        (factors,) = ctx.saved_tensors
        return grad * factors * (math.log(2) * _OCTAVES), None, None


def grain_of(source: Mapping[str, PairSource], step: float) -> int:
    """Return the power of two to whose multiples codes of scales are rounded.

    The rate tells about how large the error of values is; that of scales is to be a small
    share of it. Rounding to multiples of g moves the product of two scales by up to g / 1024
    octaves.
    """
    bits, num_values = 0.0, 0
    for part in source.values():
        for side in (part.u, part.v):
            squares = np.square(part.sizes / step) / side.shape[1]
            bits += side.shape[1] / 2 * float(np.log2(1 + PROXY_SLOPE * squares).sum())
            num_values += side.size
    error = 2.0 ** -(bits / num_values) if num_values else 1.0
    spread = math.log(2) / PER_OCTAVE / math.sqrt(3)
    return 1 << int(math.log2(min(max(error / (_GRAIN_SHARE * spread), 1), _COARSEST_GRAIN)))


def _moved_codes(shift: Tensor, codes: Tensor, grain: int) -> NDArray[np.int64]:
    moves = torch.round(shift.detach() * (_OCTAVES * PER_OCTAVE / grain)) * grain
    moved: NDArray[np.int64] = (codes + moves.to(codes.dtype)).cpu().numpy()
    return moved


def _round(x: Tensor) -> Tensor:
    rounded: Tensor = _Rounding.apply(x)  # type: ignore[no-untyped-call]  # torch
    return rounded
