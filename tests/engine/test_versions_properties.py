"""Every history of installs, retirements, compositions and pins, against a plain model."""

from collections import Counter

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hyprstream.engine.versions import HostVersions
from hyprstream.errors import AdapterMemoryFullError, VersionNotFoundError
from hyprstream.refs import VersionId
from tests.engine.adapters import low_rank

ALL = {VersionId(name): low_rank(seed=i, rank=1 + i % 3) for i, name in enumerate("abcdef")}
LIMIT = 4 * ALL[VersionId("c")].size_bytes
names = st.sampled_from(sorted(ALL))


class Histories(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.versions = HostVersions(LIMIT, fetch=ALL.__getitem__)
        self.installed: set[VersionId] = set()
        self.recipes: dict[VersionId, list[tuple[VersionId, float]]] = {}
        self.pins: Counter[VersionId] = Counter()
        self.seen: dict[VersionId, object] = {}

    def known(self):
        return sorted(self.installed)

    @rule(version=names, by_disk=st.booleans())
    def install(self, version, by_disk):
        try:
            self.versions.install(version, None if by_disk else ALL[version])
            self.installed.add(version)
        except AdapterMemoryFullError:
            assert not by_disk

    @rule(one=names, two=names, factor=st.sampled_from([0.5, 1.0]))
    def compose(self, one, two, factor):
        parts = [(one, factor)] if one == two else [(one, factor), (two, 1.0)]
        try:
            mixed = self.versions.compose(parts)
        except VersionNotFoundError:
            assert not {one, two} <= self.installed
        except AdapterMemoryFullError:
            assert {one, two} <= self.installed
        else:
            assert {one, two} <= self.installed
            self.installed.add(mixed)
            self.recipes[mixed] = parts

    @rule(data=st.data())
    @precondition(lambda self: self.installed)
    def retire(self, data):
        version = data.draw(st.sampled_from(self.known()))
        self.versions.retire(version)
        gone = {version}
        gone |= {m for m, parts in self.recipes.items() if any(p == version for p, _ in parts)}
        self.installed -= gone

    @rule(data=st.data())
    @precondition(lambda self: self.installed)
    def pin(self, data):
        version = data.draw(st.sampled_from(self.known()))
        try:
            self.versions.pin(version)
        except AdapterMemoryFullError:
            return
        self.pins[version] += 1
        self.seen.setdefault(version, self.versions.weights_of(version))

    @rule(version=names)
    def pin_what_is_not_there(self, version):
        if version not in self.installed:
            try:
                self.versions.pin(version)
            except VersionNotFoundError:
                return
            raise AssertionError("a version that is not installed was pinned")

    @rule(data=st.data())
    @precondition(lambda self: self.pins)
    def unpin(self, data):
        version = data.draw(st.sampled_from(sorted(self.pins)))
        self.versions.unpin(version)
        self.pins[version] -= 1
        if self.pins[version] == 0:
            del self.pins[version]
            del self.seen[version]

    @rule(data=st.data())
    @precondition(lambda self: self.installed and not self.pins)
    def anything_installed_can_be_pinned_when_nothing_is(self, data):
        version = data.draw(st.sampled_from(self.known()))
        self.versions.pin(version)
        self.versions.unpin(version)

    @invariant()
    def weights_stay_within_the_limit(self):
        assert 0 <= self.versions.size_bytes <= LIMIT
        assert self.versions.num_pinned == len(self.pins)

    @invariant()
    def what_is_pinned_stays_the_same(self):
        for version, weights in self.seen.items():
            assert self.versions.weights_of(version) is weights

    @invariant()
    def exactly_what_was_installed_is(self):
        for version in [*ALL, *self.recipes]:
            assert (version in self.versions) == (version in self.installed)


Histories.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestHistories = Histories.TestCase
