"""The default kind: the product of two narrow matrices (arXiv:2106.09685).

Either may have a mask; a fresh adapter has A random and B zero.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hyprstream.errors import InvalidAdapterError
from hyprstream.lora.delta import BankLimits, Start, Target
from hyprstream.lora.leaf import Leaf, Regrowth
from hyprstream.lora.low_rank_slots import LowRankSlots
from hyprstream.lora.mask import Mask, choose
from hyprstream.lora.ops import low_rank_product
from hyprstream.lora.packing import check_values, packed, unpacked
from hyprstream.lora.seeds import uniform
from hyprstream.models.forward import Factors
from hyprstream.vdb.tensors import SparseTensor


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """x A B, added to the output of a linear layer for its input x.

    Holds copies of its own, so it never changes.

    Attributes:
        a: A, (I, R), from the layer's inputs to the rank.
        b: B, (R, O), from the rank to its outputs, with the adapter's scale folded in.
        a_mask: The active elements of A, outside of which it is zero; None if all are.
        b_mask: The same for B.
    """

    kind: ClassVar[str] = "low_rank"

    # Without shape annotations: they come from outside, so they are checked in production too.
    a: Tensor
    b: Tensor
    a_mask: Mask | None = None
    b_mask: Mask | None = None

    def __post_init__(self) -> None:
        """Copy the matrices, and reject those that do not belong together.

        Raises:
            InvalidAdapterError: Shapes, dtypes or values are wrong, or not zero where a mask
                says so.
        """
        a, b = self.a, self.b
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or 0 in (*a.shape, *b.shape):
            raise InvalidAdapterError(
                f"A has shape {tuple(a.shape)} and B {tuple(b.shape)}",
                hint="A must be (inputs, rank) and B (rank, outputs).",
            )
        for name, tensor, mask in (("A", a, self.a_mask), ("B", b, self.b_mask)):
            check_values(name, tensor)
            if mask is not None:
                mask.check(tensor, name)
        # Each rank of A lies in one piece, as in a slot: to write it there is a plain copy.
        object.__setattr__(self, "a", _copied(a.T).T)
        object.__setattr__(self, "b", _copied(b))

    @property
    def shape(self) -> tuple[int, int]:
        """Logical shape (O, I) of the layer."""
        return self.b.shape[1], self.a.shape[0]

    @property
    def rank(self) -> int:
        """Width of A and height of B."""
        return self.a.shape[1]

    @property
    def size_bytes(self) -> int:
        """Bytes on the host."""
        masks = [mask.indices.nbytes for mask in (self.a_mask, self.b_mask) if mask is not None]
        return self.a.nbytes + self.b.nbytes + sum(masks)

    @property
    def shared(self) -> tuple[()]:
        """Nothing."""
        return ()

    def tensors(self) -> dict[str, Tensor]:
        """Name both matrices."""
        return {"a": self.a, "b": self.b}

    def pack(self) -> dict[str, SparseTensor]:
        """Name the active elements of both matrices."""
        return {"a": packed(self.a, self.a_mask), "b": packed(self.b, self.b_mask)}

    @classmethod
    def unpack(cls, target: Target, tensors: Mapping[str, SparseTensor]) -> Self:  # noqa: ARG003
        """Make the delta that `pack` gave these tensors for.

        Raises:
            InvalidAdapterError: They are no such delta.
        """
        if tensors.keys() != {"a", "b"}:
            raise InvalidAdapterError(
                f"a low-rank delta consists of a and b, not of {', '.join(sorted(tensors))}",
                hint="The file is damaged, or was written by a later version.",
            )
        (a, a_mask), (b, b_mask) = unpacked(tensors["a"]), unpacked(tensors["b"])
        return cls(a, b, a_mask, b_mask)

    @classmethod
    def create(cls, start: Start) -> dict[str, Self]:
        """Make A uniform in +-1/sqrt(I), as PEFT does, and B zero.

        Masks: those by seed are the same share of A and of B. Those by magnitude keep the
        largest of A. Those by gradient keep where that of B, A^T G^T for the gradient G of W,
        is largest; the gradient of A is zero while B is, so A's is by seed. Where scores are
        equal, as those of B by magnitude are, the seed decides.

        Raises:
            InvalidSettingsError: Masks by gradient need the gradients of the layers.
        """
        return {path: cls._fresh(start, path) for path in start.layers}

    @classmethod
    def _fresh(cls, start: Start, path: str) -> Self:
        outputs, inputs = start.layers[path]
        spec, rank = start.spec, start.spec.rank_of(path)
        flat = uniform(start.seed, f"{path}/low_rank/a", inputs * rank)
        # NumPy divides by IEEE rules, so the bits are the same on every machine.
        a = torch.from_numpy(flat / np.float32(inputs**0.5)).view(inputs, rank)
        b = torch.zeros(rank, outputs)
        if spec.sparsity == 0:
            return cls(a, b)
        scores = {"a": torch.zeros_like(a), "b": b}
        if spec.mask == "magnitude":
            scores["a"] = a
        elif spec.mask == "gradient":
            scores["b"] = a.T @ start.gradient(path).T
        a_mask, b_mask = (
            choose(
                {f"{path}/low_rank/{name}": score},
                spec.sparsity,
                structure=spec.structure,
                seed=start.seed,
            )[f"{path}/low_rank/{name}"]
            for name, score in scores.items()
        )
        return cls(a_mask.spread(a_mask.active(a)), b, a_mask, b_mask)

    def dense(self) -> Float[Tensor, "O I"]:
        """Return B^T A^T."""
        return (self.a.float() @ self.b.float()).T

    def trainable(self, scale: float, device: torch.device) -> "TrainableLowRank":
        """Return the same under training, with B divided by the scale."""
        return TrainableLowRank(self, scale, device)

    @classmethod
    def combine(cls, parts: Sequence[tuple[Self, float]]) -> Self:
        """Return the sum of deltas of one layer, each times its factor, by joining ranks.

        Raises:
            InvalidAdapterError: They are of different shapes.
        """
        shapes = sorted({delta.shape for delta, _ in parts})
        if len(shapes) > 1:
            raise InvalidAdapterError(
                f"adapters of layers with shapes {shapes[0]} and {shapes[1]} cannot be combined",
                hint="Combine adapters of one model.",
            )
        # A half-precision B would round its product with the factor.
        scaled = [delta.b if factor == 1 else delta.b.float() * factor for delta, factor in parts]
        deltas = [delta for delta, _ in parts]
        return cls(
            torch.cat([delta.a for delta in deltas], dim=1),
            torch.cat(scaled),
            _joined([(delta.a, delta.a_mask) for delta in deltas], dim=1),
            _joined([(delta.b, delta.b_mask) for delta in deltas], dim=0),
        )

    @classmethod
    def slots(cls, limits: BankLimits) -> LowRankSlots:
        """Return empty device memory for this kind."""
        return LowRankSlots(limits)


class TrainableLowRank:
    """x A B times the scale, where A and B are under training."""

    def __init__(self, delta: LowRank, scale: float, device: torch.device) -> None:
        self._scale = scale
        self._a = Leaf(delta.a, delta.a_mask, device)
        self._b = Leaf(delta.b.float() / scale, delta.b_mask, device)

    def parameters(self) -> dict[str, Tensor]:
        """Name A and B, or what is active of them."""
        return {"a": self._a.parameter, "b": self._b.parameter}

    def factors(self) -> Factors:
        """Return A, B and the scale."""
        return Factors(self._a.dense(), self._b.dense(), self._scale)

    def product(self, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"]:
        """Return x A B times the scale."""
        return low_rank_product(x, self._a.dense().T, self._b.dense()) * self._scale

    def regrow(self, gradient: Float[Tensor, "O I"], how: Regrowth) -> dict[str, Tensor]:
        """Move the masks; the gradients of A and B are G^T B^T and A^T G^T, but for the scale."""
        a, b = self._a.dense().detach(), self._b.dense().detach()
        wide = gradient.float()
        moved = {}
        if self._a.mask is not None:
            moved["a"] = self._a.regrow(wide.T @ b.T, how)
        if self._b.mask is not None:
            moved["b"] = self._b.regrow(a.T @ wide.T, how)
        return moved

    def snapshot(self) -> LowRank:
        """Return the value as it is now, with the scale folded into B."""
        with torch.inference_mode(mode=False), torch.no_grad():
            a, b = self._a.dense(), self._b.dense() * self._scale
            return LowRank(a, b, self._a.mask, self._b.mask)


DELTA = LowRank


def _joined(parts: Sequence[tuple[Tensor, Mask | None]], dim: int) -> Mask | None:
    if all(mask is None for _, mask in parts):
        return None
    return Mask.from_dense(
        torch.cat(
            [
                torch.ones(tensor.shape, dtype=torch.bool) if mask is None else mask.dense()
                for tensor, mask in parts
            ],
            dim=dim,
        )
    )


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
