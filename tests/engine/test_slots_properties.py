"""Any sequence of leases and releases, against a model that remembers everything."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hyprstream.engine.slots import SlotTable
from hyprstream.refs import VersionId

_VERSIONS = st.sampled_from([VersionId(name) for name in "abcde"])
_NUM_SLOTS = 3


class SlotMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = SlotTable(_NUM_SLOTS)
        self.bank: dict[int, VersionId] = {}
        self.leases: list[tuple[VersionId, int]] = []
        self.last_used: dict[VersionId, int] = {}
        self.time = 0

    @rule(version=_VERSIONS)
    def lease(self, version):
        had_room = self.table.has_room(version)
        lease = self.table.lease(version)
        assert (lease is not None) == had_room
        pinned = {held for held, _ in self.leases}
        if lease is None:
            assert len(pinned) == _NUM_SLOTS
            assert version not in pinned
            return
        assert lease.must_load == (version not in self.bank.values())
        if lease.must_load:
            evicted = self.bank.get(lease.slot)
            if evicted is not None:
                unpinned = [held for held in self.bank.values() if held not in pinned]
                assert evicted == min(unpinned, key=lambda held: self.last_used[held])
            self.bank[lease.slot] = version
        assert self.bank[lease.slot] == version
        self.leases.append((version, lease.slot))
        self.time += 1
        self.last_used[version] = self.time

    @rule(data=st.data())
    def release(self, data):
        if self.leases:
            index = data.draw(st.integers(0, len(self.leases) - 1))
            self.table.release(self.leases.pop(index)[0])

    @rule(version=_VERSIONS)
    def forget(self, version):
        self.table.forget(version)
        if version not in {held for held, _ in self.leases}:
            self.bank = {slot: held for slot, held in self.bank.items() if held != version}
        assert self.table.resident == set(self.bank.values())

    @invariant()
    def what_is_pinned_has_not_moved(self):
        self.table.check_integrity()
        assert all(self.bank[slot] == version for version, slot in self.leases)
        assert self.table.pins == Counter(version for version, _ in self.leases)


TestSlotMachine = SlotMachine.TestCase
TestSlotMachine.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
