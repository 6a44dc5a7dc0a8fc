"""Random adapters, and the plain way to add one: the reference for those in a batch."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hyprstream.lora.kinds.low_rank import LowRank
from hyprstream.lora.weights import LoraWeights

SHAPES = {"layers.0.self_attn.q_proj": (8, 6), "layers.1.mlp.down_proj": (6, 8)}


def low_rank(
    seed: int,
    linears: Mapping[str, tuple[int, int]] = SHAPES,
    *,
    rank: int = 4,
    size: float = 0.5,
) -> LoraWeights:
    """Random weights of one rank for every layer of `linears`, shapes (O, I)."""
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for path, (outputs, inputs) in linears.items():
        a = torch.randn(inputs, rank, generator=generator) / inputs**0.5
        b = torch.randn(rank, outputs, generator=generator) * size
        modules[path] = LowRank(a, b)
    return LoraWeights(modules)


class Summed:
    """A `LoraView` for one sequence: x A B, one product after the other, nothing shared."""

    def __init__(self, parts: Sequence[tuple[LoraWeights, float]]) -> None:
        self._parts = parts

    def delta(self, path: str, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"] | None:
        total = None
        for weights, factor in self._parts:
            module = weights.modules.get(path)
            if module is not None:
                tensors = module.tensors()
                added = (x @ tensors["a"]) @ tensors["b"] * factor
                total = added if total is None else total + added
        return total

    def select(self, _rows: Int[Tensor, " N"]) -> "Summed":
        return self
