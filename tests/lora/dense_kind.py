"""A second kind of delta, as plain as can be: the whole matrix, one copy per slot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from hyprstream.errors import IncompatibleAdapterError
from hyprstream.lora.delta import BankLimits, Delta, TrainableDelta
from hyprstream.lora.packing import packed
from hyprstream.models.forward import LoraView
from hyprstream.vdb.tensors import SparseTensor


@dataclass(frozen=True, slots=True, eq=False)
class DenseDelta:
    """The change of W itself, as (O, I)."""

    kind: ClassVar[str] = "dense"

    change: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        num_rows, width = self.change.shape
        return num_rows, width

    @property
    def rank(self) -> int:
        return 0

    @property
    def size_bytes(self) -> int:
        return self.change.nbytes

    @property
    def shared(self) -> tuple[()]:
        return ()

    def tensors(self) -> Mapping[str, Tensor]:
        return {"change": self.change}

    def pack(self) -> Mapping[str, SparseTensor]:
        return {"change": packed(self.change, None)}

    def dense(self) -> Tensor:
        return self.change.float()

    def trainable(self, scale: float, device: torch.device) -> TrainableDelta:
        raise NotImplementedError(scale, device)

    @classmethod
    def combine(cls, parts: Sequence[tuple[Self, float]]) -> Self:
        return cls(torch.stack([factor * delta.change for delta, factor in parts]).sum(0))

    @classmethod
    def slots(cls, limits: BankLimits) -> "DenseSlots":
        assert limits.num_slots > 0
        return DenseSlots()


class DenseSlots:
    def __init__(self) -> None:
        self.held: dict[int, dict[str, Tensor]] = {}

    @property
    def size_bytes(self) -> int:
        return sum(change.nbytes for held in self.held.values() for change in held.values())

    def check(self, deltas: Mapping[str, Delta]) -> None:
        if "refused" in deltas:
            raise IncompatibleAdapterError("a dense delta is refused")

    def write(self, slot: int, deltas: Mapping[str, Delta]) -> None:
        self.held[slot] = {path: delta.tensors()["change"] for path, delta in deltas.items()}

    def view(self, slots: Sequence[int]) -> LoraView | None:
        return DenseView(self, slots) if any(self.held.get(slot) for slot in slots) else None


class DenseView:
    def __init__(self, bank: DenseSlots, slots: Sequence[int]) -> None:
        self._bank = bank
        self._slots = slots

    def delta(self, path: str, x: Tensor) -> Tensor | None:
        changes = [self._bank.held.get(slot, {}).get(path) for slot in self._slots]
        if all(change is None for change in changes):
            return None
        width = next(len(change) for change in changes if change is not None)
        none = x.new_zeros(width)
        return torch.stack(
            [
                none if change is None else row @ change.T
                for row, change in zip(x, changes, strict=True)
            ]
        )

    def select(self, rows: Tensor) -> LoraView | None:
        return self._bank.view([self._slots[row] for row in rows.tolist()])
