"""What an adapter adds to a linear layer: the one protocol that every kind of it speaks.

A kind is one file in `kinds/` with two types: a `Delta`, the immutable value on the host,
and its `DeltaSlots`, the device memory that holds many of them for a batch to mix. Engine,
bank and weights know only what stands here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from hyprstream.models.forward import LoraView

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
        """Bytes on the host."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """Name everything that it consists of."""
        ...

    @classmethod
    def combine(cls, parts: Sequence[tuple[Self, float]]) -> Self:
        """Return the sum of deltas of one layer, each times its factor."""
        ...

    @classmethod
    def slots(cls, limits: BankLimits) -> DeltaSlots:
        """Return empty device memory for this kind."""
        ...
