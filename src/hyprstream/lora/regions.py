"""Which rows of a stack belong to which slot. Bookkeeping only, no tensors.

The ranks of all resident adapters lie one after another in shared stacks, so that a batch
over neighbouring slots is one product without a copy.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Region:
    """The rows [start, stop) of a stack."""

    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        """How many rows it has."""
        return self.stop - self.start


class Regions:
    """Hands out the rows of a stack to slots, lowest rows first.

    Invariants, checked by `test_regions_properties.py`: regions lie within the capacity and
    do not overlap; a slot keeps its region until it is released or all are packed.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._regions: dict[int, Region] = {}

    @property
    def regions(self) -> dict[int, Region]:
        """The region of each slot that has one, lowest first."""
        return dict(sorted(self._regions.items(), key=lambda item: item[1].start))

    def take(self, slot: int, num_rows: int) -> Region | None:
        """Give a slot that has none the first gap that is large enough.

        Returns:
            Its region, or None if no gap is; after `pack`, the free rows are one gap.
        """
        assert slot not in self._regions, f"slot {slot} has a region"
        start = 0
        for region in self.regions.values():
            if region.start - start >= num_rows:
                break
            start = region.stop
        if start + num_rows > self._capacity:
            return None
        self._regions[slot] = Region(start, start + num_rows)
        return self._regions[slot]

    def release(self, slot: int) -> None:
        """Take a slot's region back, if it has one."""
        self._regions.pop(slot, None)

    def pack(self) -> list[tuple[Region, Region]]:
        """Move all regions down, so that no gap is between them.

        Returns:
            From where to where rows have to be copied, in an order in which no copy
            overwrites rows that a later one reads.
        """
        moves = []
        start = 0
        for slot, region in self.regions.items():
            packed = Region(start, start + region.num_rows)
            if packed != region:
                moves.append((region, packed))
                self._regions[slot] = packed
            start = packed.stop
        return moves
