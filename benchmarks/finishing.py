"""Training through rounding: the last steps of an adapter, with its rate as part of the loss.

Factors are held in units of their scales and rounded in the forward pass; the gradient
passes the rounding as if it were not there. What comes out are integers and scales, which a
stream holds as they are.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from benchmarks.trained import Factors, FactorView, Task, to_tensors, train
from hyprstream.vdb.learned import PROXY_SLOPE, Pair, Quantised, scale_codes, scales
from hyprstream.vdb.learned.source import PairSource, read_source

DEAD_ZONE = 0.55
_GRAIN = 8  # of scales, as in streams of like error
_LR = 0.025  # in steps


class Rounding(torch.autograd.Function):
    """Rounds with a dead zone; the gradient goes straight through."""

    @staticmethod
    @override
    def forward(context: Any, x: Tensor) -> Tensor:
        del context
        return torch.sign(x) * torch.floor(x.abs() + 1 - DEAD_ZONE)

    @staticmethod
    @override
    def backward(context: Any, gradient: Tensor) -> Tensor:
        del context
        return gradient


@dataclass(frozen=True, slots=True)
class Rounded:
    """One layer in units of its scales: p (K, I) and q (K, O), with gradients."""

    codes: np.ndarray
    scale: Tensor
    p: Tensor
    q: Tensor

    def bits(self) -> Tensor:
        """The rate that a gradient can follow; see `vdb.learned.rate`."""
        total = torch.zeros(())
        for side in (self.p, self.q):
            squares = side.pow(2).mean(dim=1)
            total = total + side.shape[1] / 2 * torch.log2(1 + PROXY_SLOPE * squares).sum()
        return total


class RoundedView(FactorView):
    """A LoraView that rounds."""

    def __init__(self, layers: Mapping[str, Rounded]) -> None:
        super().__init__({})
        self._layers = layers

    @override
    def delta(self, path: str, x: Tensor) -> Tensor | None:
        if path not in self._layers:
            return None
        layer = self._layers[path]
        scale = layer.scale[:, None]
        a = (Rounding.apply(layer.p) * scale).to(x.dtype)
        return (x @ a.T) @ (Rounding.apply(layer.q) * scale).to(x.dtype)


def step_of(task_factors: Factors, coarseness: float) -> float:
    """A step in the measure of compression: `coarseness` times rms size / sqrt(200)."""
    sizes = [
        part.sizes
        for part in read_source(to_tensors(task_factors)).values()
        if isinstance(part, PairSource)
    ]
    return coarseness * float(np.sqrt(np.mean(np.concatenate(sizes) ** 2))) / math.sqrt(200)


def finish(task: Task, factors: Factors, *, step: float, weight: float, steps: int) -> Quantised:
    """Train `steps` more steps through rounding.

    Args:
        task: What is learnt.
        factors: The adapter so far.
        step: Of the rounding, in units of what the adapter adds.
        weight: Of the rate, in bits a value, against the loss in nats.
        steps: Optimizer steps.
    """
    layers = {}
    for name, part in read_source(to_tensors(factors)).items():
        assert isinstance(part, PairSource)
        used = part.sizes > 1e-6
        roots = np.sqrt(part.sizes[used])[:, None]
        codes = scale_codes(step / roots[:, 0], _GRAIN)
        scale = scales(codes)
        p, q = (
            torch.tensor(side[used] * roots / scale[:, None], dtype=torch.float32).requires_grad_()
            for side in (part.u, part.v)
        )
        layers[name.removesuffix("/low_rank")] = Rounded(codes, torch.from_numpy(scale), p, q)
    num_values = sum(layer.p.numel() + layer.q.numel() for layer in layers.values())

    def penalty() -> Tensor:
        return (
            weight * sum((layer.bits() for layer in layers.values()), torch.zeros(())) / num_values
        )

    parameters = [side for layer in layers.values() for side in (layer.p, layer.q)]
    train(
        task,
        parameters,
        RoundedView(layers),
        steps=steps,
        lr=_LR,
        seed=11,
        penalty=penalty,
    )
    ranks = {path: a.shape[1] for path, (a, _) in factors.items()}
    parts = {f"{path}/low_rank": _pair(layer, ranks[path]) for path, layer in layers.items()}
    return Quantised(parts=parts, step_code=int(scale_codes(np.array([step]), _GRAIN)[0]))


@torch.no_grad()
def _pair(layer: Rounded, rank: int) -> Pair:
    """Keep the components that are not nothing."""
    p, q = (Rounding.apply(side).to(torch.int32).numpy() for side in (layer.p, layer.q))
    kept = p.any(axis=1) & q.any(axis=1)
    return Pair(rank=rank, codes=layer.codes[kept], p=p[kept], q=q[kept])
