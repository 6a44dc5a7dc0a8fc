"""A small core in the singular basis of W (LoRA-XS, arXiv:2405.17604).

The basis follows from the base model, so an adapter stores its core alone, under a name that
says which W the basis is of. On the host and in slots one basis serves all adapters that
are written in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from hyprstream.errors import IncompatibleAdapterError, InvalidAdapterError
from hyprstream.lora.basis import Basis
from hyprstream.lora.delta import BankLimits, Start, Target
from hyprstream.lora.leaf import Leaf, Regrowth
from hyprstream.lora.mask import Mask, choose
from hyprstream.lora.packing import check_values, packed, unpacked
from hyprstream.lora.tiny_slots import PlacedBasis, TinySlots
from hyprstream.vdb.tensors import SparseTensor


@dataclass(frozen=True, slots=True, eq=False)
class Tiny:
    """x V C U, added to the output of a linear layer for its input x.

    Attributes:
        core: C, (R, R), with the adapter's scale folded in.
        basis: V, (I, R), and U, (R, O); shared, not copied.
        mask: The active elements of C, outside of which it is zero; None if all are.
    """

    kind: ClassVar[str] = "tiny"

    # Without shape annotation: it comes from outside, so it is checked in production too.
    core: Tensor
    basis: Basis
    mask: Mask | None = None

    def __post_init__(self) -> None:
        """Copy the core, and reject one that does not belong to the basis.

        Raises:
            InvalidAdapterError: Shape, dtype or values are wrong, or not zero where the mask
                says so.
        """
        if tuple(self.core.shape) != (self.basis.rank, self.basis.rank):
            raise InvalidAdapterError(
                f"a core of shape {tuple(self.core.shape)} is for no basis of rank "
                f"{self.basis.rank}",
                hint="A core is square, as wide as its basis has vectors.",
            )
        check_values("a core", self.core)
        if self.mask is not None:
            self.mask.check(self.core, "the core")
        copied = self.core.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        object.__setattr__(self, "core", copied)

    @property
    def shape(self) -> tuple[int, int]:
        """Logical shape (O, I) of the layer."""
        return self.basis.shape

    @property
    def rank(self) -> int:
        """Width of the core."""
        return self.basis.rank

    @property
    def size_bytes(self) -> int:
        """Bytes on the host that are its own; the basis is shared."""
        return self.core.nbytes + (0 if self.mask is None else self.mask.indices.nbytes)

    @property
    def shared(self) -> tuple[Basis]:
        """The basis."""
        return (self.basis,)

    def tensors(self) -> dict[str, Tensor]:
        """Name the core."""
        return {"core": self.core}

    def pack(self) -> dict[str, SparseTensor]:
        """Name the core, by what its basis is of."""
        return {f"core-{self.basis.digest}": packed(self.core, self.mask)}

    @classmethod
    def unpack(cls, target: Target, tensors: Mapping[str, SparseTensor]) -> Self:
        """Make the delta that `pack` gave this tensor for, in the basis of the target's W.

        Raises:
            InvalidAdapterError: It is no such delta, or the base model is not at hand.
            IncompatibleAdapterError: Its basis is of another W.
        """
        name, core, mask = _only_core(target.path, tensors)
        if target.base is None:
            raise InvalidAdapterError(
                f"the tiny adapter's core at {target.path} says nothing without the base model",
                hint="Hand in the base model's layers.",
            )
        basis = target.base.basis(target.path, core.shape[0])
        if name != f"core-{basis.digest}":
            raise IncompatibleAdapterError(
                f"the tiny adapter at {target.path} is for a weight {name.removeprefix('core-')}, "
                f"the model has {basis.digest}",
                hint="Use the adapter with the base model that it was trained on, in the same "
                "weight format.",
            )
        return cls(core, basis, mask)

    @classmethod
    def create(cls, start: Start) -> dict[str, Self]:
        """Make C zero.

        Masks by gradient keep where that of C, V^T G^T U^T for the gradient G of W, is
        largest. All others are by seed, for the core has no magnitudes yet.

        Raises:
            InvalidSettingsError: The base model's layers, or the gradients, are missing.
        """
        return {path: cls._fresh(start, path) for path in start.layers}

    @classmethod
    def _fresh(cls, start: Start, path: str) -> Self:
        spec, rank = start.spec, start.spec.rank_of(path)
        basis = start.needed_base().basis(path, rank)
        core = torch.zeros(rank, rank)
        if spec.sparsity == 0:
            return cls(core, basis)
        score = core
        if spec.mask == "gradient":
            score = basis.down.T @ start.gradient(path).T @ basis.up.T
        masks = choose({path: score}, spec.sparsity, structure=spec.structure, seed=start.seed)
        return cls(core, basis, masks[path])

    def dense(self) -> Float[Tensor, "O I"]:
        """Return U^T C^T V^T."""
        return (self.basis.down @ self.core.float() @ self.basis.up).T

    def trainable(self, scale: float, device: torch.device) -> "TrainableTiny":
        """Return the same under training, with the core divided by the scale."""
        return TrainableTiny(self, scale, device)

    @classmethod
    def combine(cls, parts: Sequence[tuple[Self, float]]) -> Self:
        """Return the sum of deltas of one layer, each times its factor, at the highest rank.

        Raises:
            InvalidAdapterError: Their bases are of different weights.
        """
        digests = sorted({delta.basis.digest for delta, _ in parts})
        if len(digests) > 1:
            raise InvalidAdapterError(
                f"tiny adapters for weights {digests[0]} and {digests[1]} cannot be combined",
                hint="Combine adapters of one model.",
            )
        if len(parts) == 1 and parts[0][1] == 1:
            return parts[0][0]
        basis = max((delta.basis for delta, _ in parts), key=lambda basis: basis.rank)
        core = torch.zeros(basis.rank, basis.rank)
        active = torch.zeros(basis.rank, basis.rank, dtype=torch.bool)
        for delta, factor in parts:
            # A basis of lower rank is the beginning of one of higher rank.
            corner = slice(delta.rank), slice(delta.rank)
            core[corner] += delta.core.float() * factor
            active[corner] |= True if delta.mask is None else delta.mask.dense()
        return cls(core, basis, None if active.all() else Mask.from_dense(active))

    @classmethod
    def slots(cls, limits: BankLimits) -> TinySlots:
        """Return empty device memory for this kind."""
        return TinySlots(limits)


class TrainableTiny:
    """x V C U times the scale, where C is under training."""

    def __init__(self, delta: Tiny, scale: float, device: torch.device) -> None:
        self._scale = scale
        self._basis = delta.basis
        self._placed = PlacedBasis.of(delta.basis, torch.float32, device)
        self._core = Leaf(delta.core.float() / scale, delta.mask, device)

    def parameters(self) -> dict[str, Tensor]:
        """Name the core, or what is active of it."""
        return {"core": self._core.parameter}

    def factors(self) -> None:
        """Return None: its outer factors are constants."""

    def product(self, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"]:
        """Return x V C U times the scale."""
        return self._placed.product(x, [x.shape[0]], [self._core.dense()]) * self._scale

    def regrow(self, gradient: Float[Tensor, "O I"], how: Regrowth) -> dict[str, Tensor]:
        """Move the mask; the gradient of C is V^T G^T U^T, but for the scale."""
        if self._core.mask is None:
            return {}
        steep = self._placed.down @ gradient.float().T @ self._placed.up.T
        return {"core": self._core.regrow(steep, how)}

    def snapshot(self) -> Tiny:
        """Return the value as it is now, with the scale folded in."""
        with torch.inference_mode(mode=False), torch.no_grad():
            return Tiny(self._core.dense() * self._scale, self._basis, self._core.mask)


DELTA = Tiny


def _only_core(path: str, tensors: Mapping[str, SparseTensor]) -> tuple[str, Tensor, Mask | None]:
    """Return the one tensor, which has to be square."""
    if len(tensors) == 1:
        ((name, tensor),) = tensors.items()
        if name.startswith("core-") and len(tensor.shape) == 2 and len(set(tensor.shape)) == 1:
            return name, *unpacked(tensor)
    raise InvalidAdapterError(
        f"a tiny delta at {path} consists of {', '.join(sorted(tensors))}",
        hint="It must be one square core; the file is damaged or of a later version.",
    )
