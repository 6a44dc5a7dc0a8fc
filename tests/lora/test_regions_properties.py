from itertools import pairwise

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hyprstream.lora.regions import Region, Regions

NUM_SLOTS, MAX_ROWS = 4, 6
CAPACITY = NUM_SLOTS * MAX_ROWS


class RegionsMachine(RuleBasedStateMachine):
    """Takes, releases and packs, with the stack itself as the model: who wrote which row."""

    def __init__(self) -> None:
        super().__init__()
        self.regions = Regions(CAPACITY)
        self.stack: list[int | None] = [None] * CAPACITY
        self.sizes: dict[int, int] = {}

    @rule(slot=st.integers(1, NUM_SLOTS), num_rows=st.integers(1, MAX_ROWS))
    def write(self, slot, num_rows):
        self.regions.release(slot)
        region = self.regions.take(slot, num_rows)
        if region is None:
            self.sizes.pop(slot, None)
            self.pack()
            region = self.regions.take(slot, num_rows)
        assert region is not None, "every slot at the highest size fits once packed"
        assert region.num_rows == num_rows
        self.stack[region.start : region.stop] = [slot] * num_rows
        self.sizes[slot] = num_rows

    @rule(slot=st.integers(1, NUM_SLOTS))
    def release(self, slot):
        self.regions.release(slot)
        self.sizes.pop(slot, None)

    @rule()
    def pack(self):
        for old, new in self.regions.pack():
            self.stack[new.start : new.stop] = self.stack[old.start : old.stop]
        stops = [region.stop for region in self.regions.regions.values()]
        assert max(stops, default=0) == sum(self.sizes.values())

    @invariant()
    def each_slot_reads_the_rows_that_it_wrote(self):
        assert {s: r.num_rows for s, r in self.regions.regions.items()} == self.sizes
        for slot, region in self.regions.regions.items():
            assert 0 <= region.start < region.stop <= CAPACITY
            assert set(self.stack[region.start : region.stop]) == {slot}

    @invariant()
    def regions_are_in_order_and_do_not_overlap(self):
        regions = list(self.regions.regions.values())
        assert all(a.stop <= b.start for a, b in pairwise(regions))


TestRegions = RegionsMachine.TestCase


def test_the_lowest_gap_that_is_large_enough_is_taken():
    regions = Regions(12)
    for slot in (1, 2, 3):
        regions.take(slot, 4)
    regions.release(1)
    regions.release(3)
    assert regions.take(4, 3) == Region(0, 3)
    assert regions.take(5, 4) == Region(8, 12)
    assert regions.take(6, 2) is None
