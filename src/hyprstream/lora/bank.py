"""The adapters that lie on the device, and what a batch reads of them.

Which version is in which slot is the scheduler's business; here are the tensors. Runs on
the engine thread.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hyprstream.errors import IncompatibleAdapterError
from hyprstream.lora.delta import BASE_SLOT, BankLimits, Delta, DeltaSlots
from hyprstream.lora.weights import LoraWeights
from hyprstream.models.forward import LoraView


class LoraBank:
    """Device slots for adapters, numbered from 1; slot 0 is the base model and stays empty.

    Memory is allocated as adapters need it, up to num_slots adapters of max_rank.

    Invariants, checked by `test_bank_properties.py`: a slot adds exactly what was written to
    it last, whatever was there before; rows of slot 0 keep every bit.

    Args:
        linears: Logical shape (O, I) of each linear layer, as in `Decoder.linears`.
        num_slots: Slots besides the base model's.
        max_rank: Highest rank of an adapter.
        dtype: Dtype of activations.
        device: Where the model lives.
    """

    def __init__(
        self,
        linears: Mapping[str, tuple[int, int]],
        *,
        num_slots: int,
        max_rank: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._limits = BankLimits(
            linears=dict(linears),
            num_slots=num_slots,
            max_rank=max_rank,
            dtype=dtype,
            device=device,
        )
        self._kinds: dict[str, DeltaSlots] = {}
        self._last: tuple[tuple[int, ...], LoraView | None] | None = None

    @property
    def size_bytes(self) -> int:
        """Device memory that is allocated."""
        return sum(kind.size_bytes for kind in self._kinds.values())

    def check(self, weights: LoraWeights) -> None:
        """Make sure that `write` can take an adapter, into any slot.

        Raises:
            IncompatibleAdapterError: The adapter was made for another model, or its rank is
                too high.
        """
        for kind, modules in self._by_kind(weights).items():
            self._kinds[kind].check(modules)

    def write(self, slot: int, weights: LoraWeights) -> None:
        """Replace what a slot holds. Views that were taken before are good no more.

        Raises:
            IncompatibleAdapterError: The adapter was made for another model, or its rank is
                too high; the slot is as before.
        """
        self.check(weights)
        self._check_slot(slot)
        deltas = self._by_kind(weights)
        self._last = None
        for kind, slots in self._kinds.items():
            slots.write(slot, deltas.get(kind, {}))

    def clear(self, slot: int) -> None:
        """Let a slot add nothing. Views that were taken before are good no more."""
        self.write(slot, LoraWeights({}))

    def view(self, slots: Sequence[int] | Int[Tensor, " T"]) -> LoraView | None:
        """Return what a step adds, or None if none of its tokens uses an adapter.

        Args:
            slots: The slot of each token of the step, packed; 0 and empty slots add nothing.
        """
        slots = tuple(slots.tolist() if isinstance(slots, Tensor) else slots)
        # While sequences decode, one step mixes the same slots as the one before.
        last = self._last  # read once: threads that only look may share a bank
        if last is None or last[0] != slots:
            views = [kind.view(slots) for kind in self._kinds.values()]
            last = self._last = slots, _sum([view for view in views if view is not None])
        return last[1]

    def _by_kind(self, weights: LoraWeights) -> dict[str, dict[str, Delta]]:
        """Sort modules by kind, making memory for kinds that are new."""
        deltas: dict[str, dict[str, Delta]] = {}
        for path, delta in weights.modules.items():
            shape = self._limits.linears.get(path)
            if delta.shape != shape:
                layer = "has none there" if shape is None else f"has {shape} there"
                raise IncompatibleAdapterError(
                    f"the adapter changes a linear layer of shape {delta.shape} at {path}, "
                    f"the model {layer}",
                    hint="Use the adapter with the base model that it was trained on.",
                )
            deltas.setdefault(delta.kind, {})[path] = delta
            if delta.kind not in self._kinds:
                self._kinds[delta.kind] = delta.slots(self._limits)
        return deltas

    def _check_slot(self, slot: int) -> None:
        assert BASE_SLOT < slot <= self._limits.num_slots, f"there is no slot {slot} to write to"


class SummedView:
    """What adapters of several kinds add to one batch."""

    def __init__(self, views: Sequence[LoraView]) -> None:
        self._views = views

    def delta(self, path: str, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"] | None:
        """Return what to add to the output of the linear layer at `path` for input `x`."""
        deltas = [view.delta(path, x) for view in self._views]
        added = [delta for delta in deltas if delta is not None]
        return sum(added[1:], start=added[0]) if added else None

    def select(self, rows: Int[Tensor, " N"]) -> LoraView | None:
        """Return the view of chosen rows of the step."""
        views = [view.select(rows) for view in self._views]
        return _sum([view for view in views if view is not None])


def _sum(views: Sequence[LoraView]) -> LoraView | None:
    if len(views) > 1:
        return SummedView(views)
    return views[0] if views else None
