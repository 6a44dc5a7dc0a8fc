"""The device memory of low-rank adapters: the ranks of all slots in shared stacks.

`LowRankSlots` is that memory, `LowRankView` what one step reads from it. Runs on the engine
thread.
"""

from collections.abc import Mapping, Sequence
from ctypes import Array
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import override

from hyprstream.kernels.native import NativeLowRank
from hyprstream.lora.delta import BASE_SLOT, BankLimits, Delta
from hyprstream.lora.native_rows import NativeRows, RowGroups
from hyprstream.lora.ops import Share, cut, low_rank_product, storage_dtype
from hyprstream.lora.regions import Region, Regions
from hyprstream.lora.rows import Rows, by_slot, nothing
from hyprstream.models.forward import AddsInPlace


@runtime_checkable
class Factors(Protocol):
    """A delta that is a product: A, (I, R), times B, (R, O)."""

    @property
    def a(self) -> Tensor:
        """A."""
        ...

    @property
    def b(self) -> Tensor:
        """B."""
        ...


@dataclass(slots=True)
class Stack:
    """The ranks of all slots at one linear layer; all stacks have the same rows.

    Attributes:
        a: Transposed A of each slot, one below the other.
        b: B of each slot, likewise.
    """

    a: Float[Tensor, "R I"]
    b: Float[Tensor, "R O"]


class LowRankSlots:
    """The device memory of low-rank adapters, shared by all slots.

    Each slot has one region of rows, the same in the stack of every layer; a module of lower
    rank, or none, is zero in the rest of it. Stacks exist for layers that some adapter has
    changed, and grow by doubling to num_slots * max_rank rows.

    Invariants, checked by `test_bank_properties.py`: whatever was written before, a slot
    adds exactly what was written to it last; all values are finite.

    Attributes:
        native: The kernel for few rows, if there is one. Stacks are then in the dtype of
            activations; torch is faster with float32.
    """

    def __init__(self, limits: BankLimits, *, uses_native: bool = True) -> None:
        self._limits = limits
        self.native = NativeRows.open(limits.dtype, limits.device) if uses_native else None
        self._dtype = (
            storage_dtype(limits.dtype, limits.device) if self.native is None else limits.dtype
        )
        self._capacity = limits.num_slots * limits.max_rank
        self._num_rows = 0
        self._regions = Regions(self._capacity)
        self._stacks: dict[str, Stack] = {}
        self._paths: dict[int, frozenset[str]] = {}
        self._owners = self._unowned()

    @property
    def size_bytes(self) -> int:
        """Memory that is allocated."""
        return sum(stack.a.nbytes + stack.b.nbytes for stack in self._stacks.values())

    def check(self, deltas: Mapping[str, Delta]) -> None:
        """Make sure that `write` can take the deltas.

        Raises:
            IncompatibleAdapterError: A rank is too high, or a value too large for the dtype.
        """
        self._limits.check(deltas, self._dtype)

    def write(self, slot: int, deltas: Mapping[str, Delta]) -> None:
        """Replace what the slot holds by deltas that passed `check`; by nothing, if empty."""
        # Stacks outlive the step, so they must not become tensors of its inference mode.
        with torch.inference_mode(mode=False), torch.no_grad():
            self._regions.release(slot)
            self._paths.pop(slot, None)
            if deltas:
                self._fill(self._region(slot, max(d.rank for d in deltas.values())), deltas)
                self._paths[slot] = frozenset(deltas)
            self._owners = self._unowned()
            for owner, region in self._regions.regions.items():
                self._owners[region.start : region.stop] = owner

    def view(self, slots: Sequence[int]) -> "LowRankView | None":
        """Return what each token's slot adds, or None if none of them adds anything."""
        if any(slot in self._paths for slot in set(slots)):
            return LowRankView(self, slots)
        return None

    def paths(self, slot: int) -> frozenset[str]:
        """Return the layers to which a slot adds something."""
        return self._paths.get(slot, frozenset())

    def stack(self, path: str) -> Stack:
        """Return the ranks of all slots at a layer that some slot has changed."""
        return self._stacks[path]

    def groups(self, slots: Sequence[int], path: str) -> RowGroups:
        """Group the rows of a batch whose slots add something to a layer."""
        regions = self._regions.regions
        return RowGroups.of(
            [
                (regions[slot], rows)
                for slot, rows in by_slot(slots).items()
                if path in self.paths(slot)
            ]
        )

    def blocks(self, slots: Sequence[int]) -> "list[Block]":
        """Cut a batch into blocks."""
        rows = by_slot(slots)
        shares = [
            Share(slot, region, len(rows[slot]))
            for slot, region in self._regions.regions.items()
            if slot in rows
        ]
        return [self._block(block, rows, slots) for block in cut(shares)]

    def _block(
        self, shares: Sequence[Share], rows: Mapping[int, list[int]], slots: Sequence[int]
    ) -> "Block":
        device = self._limits.device
        chosen = sorted(row for share in shares for row in rows[share.slot])
        ranks = slice(shares[0].region.start, shares[-1].region.stop)
        others = None
        if len(shares) > 1:
            of_row = torch.tensor([slots[row] for row in chosen], device=device)
            others = of_row[:, None] != self._owners[ranks]
        return Block(
            rows=Rows.of(chosen, len(slots), device),
            ranks=ranks,
            others=others,
            paths=frozenset[str]().union(*(self._paths[share.slot] for share in shares)),
        )

    def _region(self, slot: int, num_rows: int) -> Region:
        """Find room for a slot; there always is, if need be after packing what is there."""
        region = self._regions.take(slot, num_rows)
        if region is None:
            moves = self._regions.pack()
            for stack in self._stacks.values():
                for tensor in (stack.a, stack.b):
                    for old, new in moves:
                        tensor[new.start : new.stop] = tensor[old.start : old.stop].clone()
            region = self._regions.take(slot, num_rows)
        assert region is not None, "every slot at the highest rank would fit"
        return region

    def _fill(self, region: Region, deltas: Mapping[str, Delta]) -> None:
        self._reserve(region.stop, deltas)
        for path, stack in self._stacks.items():
            delta = deltas.get(path)
            stop = region.start
            if delta is not None:
                assert isinstance(delta, Factors)
                stop += delta.rank
                stack.a[region.start : stop] = delta.a.T
                stack.b[region.start : stop] = delta.b
            if stop < region.stop:
                stack.a[stop : region.stop] = 0
                stack.b[stop : region.stop] = 0

    def _reserve(self, num_rows: int, paths: Mapping[str, Delta]) -> None:
        """Make sure that stacks have so many rows, and that the paths have stacks."""
        if num_rows > self._num_rows:
            self._num_rows = min(max(num_rows, 2 * self._num_rows), self._capacity)
            for stack in self._stacks.values():
                stack.a = self._grown(stack.a)
                stack.b = self._grown(stack.b)
        for path in paths:
            if path not in self._stacks:
                outputs, inputs = self._limits.linears[path]
                self._stacks[path] = Stack(self._zeros(inputs), self._zeros(outputs))

    def _grown(self, rows: Float[Tensor, "R X"]) -> Float[Tensor, "R2 X"]:
        grown = self._zeros(rows.shape[1])
        grown[: rows.shape[0]] = rows
        return grown

    def _zeros(self, width: int) -> Float[Tensor, "R X"]:
        # Rows of no slot stay in the way of products, so they must hold numbers.
        return torch.zeros(self._num_rows, width, dtype=self._dtype, device=self._limits.device)

    def _unowned(self) -> Int[Tensor, " R"]:
        return torch.full((self._capacity,), BASE_SLOT, device=self._limits.device)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """Rows of a batch and the stretch of the stacks that holds their adapters.

    Attributes:
        rows: Which rows, in order.
        ranks: Which stretch.
        others: Marks the ranks that a row does not use; None for a block of one slot.
        paths: The layers at which any of the adapters adds something.
    """

    rows: Rows
    ranks: slice
    others: Bool[Tensor, "N R"] | None
    paths: frozenset[str]

    def product(self, stack: Stack, x: Float[Tensor, "N I"]) -> Float[Tensor, "N O"]:
        """Return what the adapters add to the block's rows."""
        return low_rank_product(x, stack.a[self.ranks], stack.b[self.ranks], self.others)


class LowRankView(AddsInPlace):
    """What the slots of one step add; the batch is grouped once, when first asked."""

    def __init__(self, bank: LowRankSlots, slots: Sequence[int]) -> None:
        self._bank = bank
        self._slots = slots
        self._used = sorted(set(slots))
        changed = {bank.paths(slot) for slot in self._used} - {frozenset()}
        self._paths = frozenset[str]().union(*changed)
        self._are_alike = len(changed) == 1
        self._groups: dict[tuple[int, ...], RowGroups] = {}
        self._added: tuple[Sequence[str], Array[NativeLowRank]] | None = None

    @cached_property
    def _blocks(self) -> list[Block]:
        with torch.inference_mode(mode=False):  # masks may serve training later
            return self._bank.blocks(self._slots)

    def delta(self, path: str, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"] | None:
        """Return what to add to the output of the linear layer at `path` for input `x`."""
        if path not in self._paths:
            return None
        stack = self._bank.stack(path)
        native = self._bank.native
        if native is not None and native.takes(x):
            return native.product(x, stack.a, stack.b, self._groups_at(path))
        blocks = [block for block in self._blocks if path in block.paths]
        if blocks[0].rows.is_all:
            return blocks[0].product(stack, x)
        added = nothing(x, stack.b.shape[1])
        for block in blocks:
            added = block.rows.put(added, block.product(stack, block.rows.take(x)))
        return added

    @override
    def add_to(
        self, path: str, x: Float[Tensor, "T I"], y: Float[Tensor, "T O"]
    ) -> Float[Tensor, "T O"]:
        """Return `y` and what is added to it; `y` may be changed."""
        native = self._bank.native
        if path in self._paths and native is not None and native.takes(x):
            stack = self._bank.stack(path)
            return native.add_to(y, x, stack.a, stack.b, self._groups_at(path))
        delta = self.delta(path, x)
        return y if delta is None else y + delta

    @override
    def added(
        self, paths: Sequence[str], rows: Float[Tensor, "T C"]
    ) -> Array[NativeLowRank] | None:
        """Return what is added to rows at the linear layers `paths`, for the native kernels."""
        if self._bank.native is None or not self._bank.native.takes(rows):
            return None
        if self._added is None or self._added[0] is not paths:
            added = (NativeLowRank * len(paths))()
            for place, path in enumerate(paths):
                if path in self._paths:
                    stack = self._bank.stack(path)
                    addresses = self._groups_at(path).addresses
                    added[place] = NativeLowRank(stack.a.data_ptr(), stack.b.data_ptr(), *addresses)
            self._added = paths, added
        return self._added[1]

    def _groups_at(self, path: str) -> RowGroups:
        # Adapters mostly change the same layers, so that there is one grouping for all.
        adding: tuple[int, ...] = ()
        if not self._are_alike:
            adding = tuple(slot for slot in self._used if path in self._bank.paths(slot))
        if adding not in self._groups:
            self._groups[adding] = self._bank.groups(self._slots, path)
        return self._groups[adding]

    def select(self, rows: Int[Tensor, " N"]) -> "LowRankView | None":
        """Return the view of chosen rows of the step."""
        return self._bank.view([self._slots[row] for row in rows.tolist()])
