"""What an adapter adds to a linear layer: the one protocol that every kind of it speaks.

A kind is one file in `kinds/` with two types: a `Delta`, the immutable value on the host,
and its `DeltaSlots`, the device memory that holds many of them for a batch to mix. Engine,
bank and weights know only what stands here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from hyprstream.errors import IncompatibleAdapterError, InvalidSettingsError
from hyprstream.lora.basis import BaseLayers, Basis
from hyprstream.lora.leaf import Regrowth
from hyprstream.lora.spec import LoraSpec
from hyprstream.models.forward import Factors, LoraView
from hyprstream.vdb.tensors import SparseTensor

BASE_SLOT = 0
"""The slot of the base model, which holds nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BankLimits:
    """What a bank has room for.

    Attributes:
        linears: Logical shape (O, I) of each linear layer of the model, by path.
        num_slots: Slots besides the base model's; they are numbered from 1.
        max_rank: Highest rank of an adapter.
        dtype: Dtype of activations.
        device: Where slots live.
    """

    linears: Mapping[str, tuple[int, int]]
    num_slots: int
    max_rank: int
    dtype: torch.dtype
    device: torch.device

    def check(self, deltas: "Mapping[str, Delta]", dtype: torch.dtype) -> None:
        """Make sure that slots whose values are of a dtype have room for deltas with ranks.

        Raises:
            IncompatibleAdapterError: A rank is too high, or a value too large for the dtype.
        """
        for path, delta in deltas.items():
            if delta.rank > self.max_rank:
                raise IncompatibleAdapterError(
                    f"the adapter has rank {delta.rank} at {path}, "
                    f"slots have room for {self.max_rank}",
                    hint="Raise the highest rank in the engine's settings.",
                )
            check_finite(path, delta.tensors().values(), dtype)


def check_finite(path: str, tensors: Iterable[Tensor], dtype: torch.dtype) -> None:
    """Make sure that values of a layer fit into the dtype of slots.

    Raises:
        IncompatibleAdapterError: One does not.
    """
    for tensor in tensors:
        if not torch.isfinite(tensor.to(dtype)).all():
            name = str(dtype).removeprefix("torch.")
            raise IncompatibleAdapterError(
                f"the adapter's values at {path} are too large for {name}",
                hint="Load the model with dtype bfloat16 or float32.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A linear layer that an adapter changes, as what makes and reads the adapter knows it.

    Attributes:
        path: Its path in the model.
        base: The base model's layers; None where none is at hand.
    """

    path: str
    base: BaseLayers | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a fresh adapter is made from.

    Attributes:
        spec: What it shall look like.
        layers: Logical shape (O, I) of each layer that it shall change, by path.
        seed: Decides everything that is random.
        base: The base model's layers; None where none is at hand.
        gradients: Gradient of a loss for W of each layer, (O, I), for masks chosen by it.
    """

    spec: LoraSpec
    layers: Mapping[str, tuple[int, int]]
    seed: int
    base: BaseLayers | None = None
    gradients: Mapping[str, Tensor] | None = None

    def gradient(self, path: str) -> Tensor:
        """Return the gradient of a layer's W in float32, on the host.

        Raises:
            InvalidSettingsError: It was not given.
        """
        if self.gradients is None or path not in self.gradients:
            raise InvalidSettingsError(
                f"mask is gradient, and there is no gradient for {path}",
                hint="Hand in the gradients of the layers, or choose masks by seed.",
            )
        return self.gradients[path].detach().to("cpu", torch.float32)

    def needed_base(self) -> BaseLayers:
        """Return the base model's layers.

        Raises:
            InvalidSettingsError: They were not given.
        """
        if self.base is None:
            raise InvalidSettingsError(
                f"an adapter of kind {self.spec.kind} with a mask by {self.spec.mask} "
                "is made from the base model's weights",
                hint="Hand in the base model's layers.",
            )
        return self.base


@runtime_checkable
class TrainableDelta(Protocol):
    """What an adapter under training adds to one linear layer."""

    def parameters(self) -> Mapping[str, Tensor]:
        """Name the leaves to optimise, float32.

        A tensor with a mask is the list of its active elements, in flat order, so that no
        optimizer can move the others; one without has its own shape.
        """
        ...

    def factors(self) -> Factors | None:
        """Return the same as two factors, if that is what it is."""
        ...

    def product(self, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"]:
        """Return what to add for input `x`, differentiable in it and in the parameters."""
        ...

    def regrow(self, gradient: Float[Tensor, "O I"], how: Regrowth) -> Mapping[str, Tensor]:
        """Move all masks to where the loss falls fastest (RigL, arXiv:1911.11134).

        Args:
            gradient: Of the loss for the layer's W, as `WeightGradients` records it.
            how: How far.

        Returns:
            For each parameter with a mask, the place of each new element among the old ones,
            or -1: what an optimizer keeps has to move likewise.
        """
        ...

    def snapshot(self) -> "Delta":
        """Return the value as it is now, in float32."""
        ...


@runtime_checkable
class DeltaSlots(Protocol):
    """The device memory of one kind of delta, for all slots of a bank."""

    @property
    def size_bytes(self) -> int:
        """Memory that is allocated."""
        ...

    def check(self, deltas: Mapping[str, "Delta"]) -> None:
        """Make sure that `write` can take the deltas, whose paths and shapes are the model's.

        Raises:
            IncompatibleAdapterError: It cannot.
        """
        ...

    def write(self, slot: int, deltas: Mapping[str, "Delta"]) -> None:
        """Replace what the slot holds by deltas that passed `check`; by nothing, if empty."""
        ...

    def view(self, slots: Sequence[int]) -> LoraView | None:
        """Return what each token's slot adds, or None if none of them adds anything.

        Args:
            slots: The slot of each token of the step. The view is good until the next write.
        """
        ...


@runtime_checkable
class Delta(Protocol):
    """What one adapter adds to one linear layer: an immutable value on the host."""

    kind: ClassVar[str]
    """Name of the kind; part of a version's identity."""

    @property
    def shape(self) -> tuple[int, int]:
        """Logical shape (O, I) of the layer."""
        ...

    @property
    def rank(self) -> int:
        """Rank that it takes up in a slot; 0 for a kind that has none."""
        ...

    @property
    def size_bytes(self) -> int:
        """Bytes on the host that are its own."""
        ...

    @property
    def shared(self) -> Sequence[Basis]:
        """What it needs besides, and other deltas may need too."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """Name everything that it consists of, as whole tensors."""
        ...

    def pack(self) -> Mapping[str, SparseTensor]:
        """Name the same with only the active elements: what is stored, and its identity."""
        ...

    def dense(self) -> Float[Tensor, "O I"]:
        """Return what it adds to the layer's W, in float32."""
        ...

    def trainable(self, scale: float, device: torch.device) -> TrainableDelta:
        """Return the same under training.

        Args:
            scale: The factor that the delta holds folded in, and that training keeps outside
                of its parameters.
            device: Where to train.
        """
        ...

    @classmethod
    def combine(cls, parts: Sequence[tuple[Self, float]]) -> Self:
        """Return the sum of deltas of one layer, each times its factor."""
        ...

    @classmethod
    def slots(cls, limits: BankLimits) -> DeltaSlots:
        """Return empty device memory for this kind."""
        ...


@runtime_checkable
class Kind(Protocol):
    """What makes deltas of a kind: its class, which the kind's file calls DELTA."""

    def unpack(self, target: Target, tensors: Mapping[str, SparseTensor]) -> Delta:
        """Make the delta that `pack` gave these tensors for.

        Raises:
            InvalidAdapterError: They are no such delta.
            IncompatibleAdapterError: They belong to another base model than the target's.
        """
        ...

    def create(self, start: Start) -> Mapping[str, Delta]:
        """Make the deltas of a fresh adapter, by path. It adds nothing yet.

        Raises:
            InvalidSettingsError: The start lacks something that the spec needs.
        """
        ...
