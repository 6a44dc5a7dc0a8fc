"""Random adapters, and the plain way to add one: the reference for those in a batch."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hyprstream.lora.basis import singular_basis
from hyprstream.lora.kinds.low_rank import LowRank
from hyprstream.lora.kinds.sparse import Sparse
from hyprstream.lora.kinds.tiny import Tiny
from hyprstream.lora.mask import seeded
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


def sparse(
    seed: int, linears: Mapping[str, tuple[int, int]] = SHAPES, *, sparsity: float = 0.95
) -> LoraWeights:
    """Random values at random places of every layer of `linears`."""
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for path, shape in linears.items():
        mask = seeded(shape, sparsity, structure="unstructured", seed=seed, name=path)
        modules[path] = Sparse(torch.randn(mask.num_active, generator=generator) * 0.2, mask)
    return LoraWeights(modules)


def tiny(
    seed: int, linears: Mapping[str, tuple[int, int]] = SHAPES, *, rank: int = 4
) -> LoraWeights:
    """Random cores in the bases of random weights, which all adapters of a layer share."""
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for path, shape in linears.items():
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(len(path)))
        core = torch.randn(rank, rank, generator=generator)
        modules[path] = Tiny(core, singular_basis(weight, rank))
    return LoraWeights(modules)


class Summed:
    """A `LoraView` for one sequence: one product after the other, nothing shared."""

    def __init__(self, parts: Sequence[tuple[LoraWeights, float]]) -> None:
        self._parts = parts

    def delta(self, path: str, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"] | None:
        total = None
        for weights, factor in self._parts:
            module = weights.modules.get(path)
            if module is not None:
                if isinstance(module, LowRank):
                    added = (x @ module.a) @ module.b * factor
                else:
                    added = x @ module.dense().T * factor
                total = added if total is None else total + added
        return total

    def select(self, _rows: Int[Tensor, " N"]) -> "Summed":
        return self
