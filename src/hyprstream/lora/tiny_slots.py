"""The device memory of tiny adapters: a core for each slot and layer, and shared bases.

`TinySlots` is that memory, `TinyView` what one step reads from it. Runs on the engine thread.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hyprstream.lora.basis import Basis
from hyprstream.lora.delta import BankLimits, Delta
from hyprstream.lora.ops import in_one_dtype, storage_dtype
from hyprstream.lora.rows import Rows, by_slot, nothing


@runtime_checkable
class Cored(Protocol):
    """A delta that is a core, (R, R), in a basis."""

    @property
    def core(self) -> Tensor:
        """The core."""
        ...

    @property
    def basis(self) -> Basis:
        """The basis."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class PlacedBasis:
    """A basis on a device.

    Attributes:
        basis: Where it came from.
        down: V^T, so that each vector lies in one piece.
        up: U.
    """

    basis: Basis
    down: Float[Tensor, "R I"]
    up: Float[Tensor, "R O"]

    @classmethod
    def of(cls, basis: Basis, dtype: torch.dtype, device: torch.device) -> Self:
        """Copy a basis to a device."""
        down = basis.down.T.contiguous().to(device, dtype)
        return cls(basis, down, basis.up.to(device, dtype))

    def product(
        self,
        x: Float[Tensor, "N I"],
        counts: Sequence[int],
        cores: Sequence[Float[Tensor, "R R"]],
    ) -> Float[Tensor, "N O"]:
        """Return x V C U for rows that are sorted by their core, in the dtype of `x`.

        Args:
            x: The rows.
            counts: How many rows each core has.
            cores: C of each.
        """
        dtype = x.dtype
        x, down, up, *cores = in_one_dtype(x, self.down, self.up, *cores)
        hidden = F.linear(x, down).split(list(counts))
        turned = [rows @ core for rows, core in zip(hidden, cores, strict=True)]
        return (torch.cat(turned) @ up).to(dtype)


@dataclass(frozen=True, slots=True, eq=False)
class PlacedCore:
    """What a slot adds at a layer."""

    placed: PlacedBasis
    core: Float[Tensor, "R R"]


class TinySlots:
    """The device memory of tiny adapters: a core for each slot and layer, and shared bases.

    Args:
        limits: What the bank has room for.
    """

    def __init__(self, limits: BankLimits) -> None:
        self._limits = limits
        self._dtype = storage_dtype(limits.dtype, limits.device)
        self._cores: dict[int, dict[str, PlacedCore]] = {}

    @property
    def size_bytes(self) -> int:
        """Memory that is allocated; a shared basis counts once."""
        held = [placed for cores in self._cores.values() for placed in cores.values()]
        bases = {id(core.placed): core.placed for core in held}.values()
        return sum(core.core.nbytes for core in held) + sum(
            placed.down.nbytes + placed.up.nbytes for placed in bases
        )

    def check(self, deltas: Mapping[str, Delta]) -> None:
        """Make sure that `write` can take the deltas.

        Raises:
            IncompatibleAdapterError: A rank is too high, or a value too large for the dtype.
        """
        self._limits.check(deltas, self._dtype)

    def write(self, slot: int, deltas: Mapping[str, Delta]) -> None:
        """Replace what the slot holds by deltas that passed `check`; by nothing, if empty."""
        self._cores.pop(slot, None)
        if deltas:
            # Cores outlive the step, so they must not become tensors of its inference mode.
            with torch.inference_mode(mode=False), torch.no_grad():
                self._cores[slot] = {
                    path: self._placed(path, delta) for path, delta in deltas.items()
                }

    def view(self, slots: Sequence[int]) -> "TinyView | None":
        """Return what each token's slot adds, or None if none of them adds anything."""
        if any(slot in self._cores for slot in set(slots)):
            return TinyView(self, slots, self._limits.device)
        return None

    def core(self, slot: int, path: str) -> PlacedCore | None:
        """Return what a slot adds at a layer."""
        return self._cores.get(slot, {}).get(path)

    def _placed(self, path: str, delta: Delta) -> PlacedCore:
        assert isinstance(delta, Cored)
        core = delta.core.to(self._limits.device, self._dtype)
        for cores in self._cores.values():
            held = cores.get(path)
            if held is not None and _is_same(held.placed.basis, delta.basis):
                return PlacedCore(held.placed, core)
        return PlacedCore(PlacedBasis.of(delta.basis, self._dtype, self._limits.device), core)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Rows of a batch that share a basis at a layer, sorted by slot."""

    rows: Rows
    placed: PlacedBasis
    counts: list[int]
    cores: list[Float[Tensor, "R R"]]

    def product(self, x: Float[Tensor, "N I"]) -> Float[Tensor, "N O"]:
        """Return what is added to them."""
        return self.placed.product(x, self.counts, self.cores)


class TinyView:
    """What the slots of one step add; the rows of each layer are sorted once."""

    def __init__(self, bank: TinySlots, slots: Sequence[int], device: torch.device) -> None:
        self._bank = bank
        self._slots = slots
        self._device = device
        self._rows = by_slot(slots)
        self._parts: dict[str, list[Part]] = {}

    def delta(self, path: str, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"] | None:
        """Return what to add to the output of the linear layer at `path` for input `x`."""
        if path not in self._parts:
            with torch.inference_mode(mode=False):
                self._parts[path] = self._sorted(path)
        parts = self._parts[path]
        if not parts:
            return None
        if parts[0].rows.is_all:
            return parts[0].product(x)
        added = nothing(x, parts[0].placed.up.shape[1])
        for part in parts:
            added = part.rows.put(added, part.product(part.rows.take(x)))
        return added

    def select(self, rows: Int[Tensor, " N"]) -> "TinyView | None":
        """Return the view of chosen rows of the step."""
        return self._bank.view([self._slots[row] for row in rows.tolist()])

    def _sorted(self, path: str) -> list[Part]:
        sharing: dict[int, list[tuple[list[int], PlacedCore]]] = {}
        for slot, rows in self._rows.items():
            held = self._bank.core(slot, path)
            if held is not None:
                sharing.setdefault(id(held.placed), []).append((rows, held))
        return [
            Part(
                rows=Rows.of(
                    [row for rows, _ in members for row in rows], len(self._slots), self._device
                ),
                placed=members[0][1].placed,
                counts=[len(rows) for rows, _ in members],
                cores=[held.core for _, held in members],
            )
            for members in sharing.values()
        ]


def _is_same(first: Basis, second: Basis) -> bool:
    return first is second or (
        first.shape == second.shape
        and first.rank == second.rank
        and torch.equal(first.down, second.down)
        and torch.equal(first.up, second.up)
    )
