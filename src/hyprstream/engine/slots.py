"""Which adapter version sits in which device slot.

A slot is one row of the LoraBank. Slot 0 is the base model and never changes hands.
A version is pinned while a running sequence uses it. An unpinned version keeps its
slot until another version needs it; the least recently used goes first.

Bookkeeping only, no tensors: the scheduler asks here, the runner does the copying.
Runs on the engine thread.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from hyprstream.refs import VersionId

BASE_SLOT = 0


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to use a slot until `SlotTable.release` is called for its version.

    Attributes:
        slot: Row of the LoraBank to read.
        must_load: True if the version's weights have to be copied into the slot first.
    """

    slot: int
    must_load: bool


class SlotTable:
    """Hands out the slots of a LoraBank to adapter versions.

    Invariants, checked by `test_slots_properties.py`: no two versions share a slot; a
    pinned version never moves; every slot is free or taken, never both.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._free = list(range(num_slots, BASE_SLOT, -1))
        self._slots: OrderedDict[VersionId, int] = OrderedDict()  # least recently used first
        self._pins: dict[VersionId, int] = {}

    @property
    def pins(self) -> Mapping[VersionId, int]:
        """The versions in use, each with the number of its leases."""
        return self._pins

    @property
    def resident(self) -> frozenset[VersionId]:
        """The versions that have slots, in use or not."""
        return frozenset(self._slots)

    def lease(self, version: VersionId | None) -> Lease | None:
        """Pin `version` in a slot, evicting an unpinned one if needed.

        Returns:
            The lease, or None if every slot is pinned. None is an ordinary answer: the
            scheduler leaves the sequence waiting and tries the next one.
        """
        if version is None:
            return Lease(BASE_SLOT, must_load=False)
        must_load = version not in self._slots
        if must_load:
            slot = self._take_slot()
            if slot is None:
                return None
            self._slots[version] = slot
        self._slots.move_to_end(version)
        self._pins[version] = self._pins.get(version, 0) + 1
        return Lease(self._slots[version], must_load)

    def has_room(self, version: VersionId | None) -> bool:
        """Tell whether `lease` would give a slot. Changes nothing."""
        return version is None or version in self._slots or len(self._pins) < self._num_slots

    def release(self, version: VersionId | None) -> None:
        """Undo one `lease`. The version stays resident until its slot is needed."""
        if version is None:
            return
        assert self._pins.get(version, 0) > 0, f"{version} released more often than leased"
        self._pins[version] -= 1
        if self._pins[version] == 0:
            del self._pins[version]

    def forget(self, version: VersionId) -> None:
        """Free the slot of a version that nobody will ask for again; a pinned one keeps it."""
        if version in self._slots and version not in self._pins:
            self._free.append(self._slots.pop(version))

    def check_integrity(self) -> None:
        """Check what the class promises; for tests, after every step."""
        taken = list(self._slots.values())
        assert sorted(taken + self._free) == list(range(1, self._num_slots + 1)), (
            f"slots {taken} are taken and {self._free} free, of {self._num_slots}"
        )
        assert self._pins.keys() <= self._slots.keys(), "a pinned version has no slot"
        assert all(count > 0 for count in self._pins.values()), "a version is pinned by nobody"

    def _take_slot(self) -> int | None:
        if self._free:
            return self._free.pop()
        for version in self._slots:
            if version not in self._pins:
                return self._slots.pop(version)
        return None
