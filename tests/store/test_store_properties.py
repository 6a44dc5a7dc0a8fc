"""Whatever is done to a store, and wherever it is stopped, the disk fills or power is lost."""

import copy
import hashlib
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from typing_extensions import override

from hyprstream.errors import (
    AdapterExistsError,
    AdapterNotFoundError,
    HyprstreamError,
    StaleParentError,
    StorageFullError,
    VersionNotFoundError,
)
from hyprstream.refs import AdapterName, AdapterRef, VersionId
from hyprstream.store.canaries import TAG
from hyprstream.store.manifest import Draft, Payload
from hyprstream.store.records import Note
from hyprstream.store.store import AdapterStore
from tests.store.fakes import FaultyDisk, Stopped, draft

NAMES = st.sampled_from([AdapterName("support"), AdapterName("team/poet")])
TAGS = st.sampled_from(["stable", "canary"])
PAYLOADS = st.sampled_from([b"", b"one", b"two and more", b"x" * 300])
FAILURES = (
    st.none()
    | st.none()
    | st.builds(
        lambda at, how, seed: Failure(at=at, how=how, seed=seed),
        st.integers(0, 14),
        st.sampled_from(["full", "before", "within", "after", "power"]),
        st.integers(0, 255),
    )
)
PICK = st.integers(0, 1 << 16)
_FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - syncing costs nothing there
UNKNOWN = VersionId("0" * 64)


@dataclass(frozen=True)
class Failure:
    """What goes wrong at which operation; the seed picks what a loss of power destroys."""

    at: int
    how: str
    seed: int


@dataclass
class Named:
    """What a name is: the versions that rollbacks return to, its moves, its tags, its canary."""

    stack: list[VersionId]
    moves: list[tuple[str, VersionId, datetime]]
    tags: dict[str, VersionId] = field(default_factory=dict)
    canary: VersionId | None = None

    def end_canary(self) -> None:
        if self.canary is not None:
            self.canary = None
            del self.tags[TAG]


@dataclass
class Committed:
    payload: bytes
    recorded: datetime
    needed: VersionId | None


class Model:
    """A store as dictionaries."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.versions: dict[VersionId, Committed] = {}
        self.names: dict[AdapterName, Named] = {}

    def named(self, name: AdapterName) -> Named:
        if name not in self.names:
            raise AdapterNotFoundError("no name")
        return self.names[name]

    def require(self, version: VersionId) -> None:
        if version not in self.versions:
            raise VersionNotFoundError("no version")

    def create(self, name: AdapterName, to: VersionId) -> None:
        if name in self.names:
            raise AdapterExistsError("taken")
        self.require(to)
        self.names[name] = Named(stack=[to], moves=[("create", to, self.now)])

    def promote(self, name: AdapterName, to: VersionId, expected: VersionId) -> None:
        named = self.named(name)
        if named.stack[-1] != expected:
            raise StaleParentError("stale")
        self.require(to)
        named.end_canary()
        if to != expected:
            named.stack.append(to)
            named.moves.append(("promote", to, self.now))

    def rollback(self, name: AdapterName) -> None:
        named = self.named(name)
        if len(named.stack) < 2:
            raise VersionNotFoundError("nothing below")
        self.require(named.stack[-2])
        named.end_canary()
        named.stack.pop()
        named.moves.append(("rollback", named.stack[-1], self.now))

    def tag(self, name: AdapterName, tag: str, to: VersionId) -> None:
        named = self.named(name)
        self.require(to)
        if tag == TAG:
            named.end_canary()
        named.tags[tag] = to

    def untag(self, name: AdapterName, tag: str) -> None:
        if tag not in (self.names[name].tags if name in self.names else {}):
            raise VersionNotFoundError("no tag")
        del self.names[name].tags[tag]
        if tag == TAG:
            self.names[name].canary = None

    def begin_canary(self, name: AdapterName, to: VersionId, parent: VersionId) -> None:
        named = self.named(name)
        if named.stack[-1] != parent or named.canary is not None:
            raise StaleParentError("stale")
        self.require(to)
        named.canary = named.tags[TAG] = to

    def end_canary(self, name: AdapterName, version: VersionId, *, promotes: bool) -> None:
        named = self.names.get(name)
        if named is None or named.canary != version:
            raise StaleParentError("not out")
        named.end_canary()
        if promotes and version != named.stack[-1]:
            named.stack.append(version)
            named.moves.append(("promote", version, self.now))

    def delete(self, name: AdapterName) -> None:
        self.named(name)
        del self.names[name]

    def collect(self, keep: int | None, grace: timedelta, held: set[bytes]) -> None:
        kept: set[VersionId] = set()
        for named in self.names.values():
            moved = [version for _, version, _ in named.moves]
            if keep is not None:
                moved = moved[len(moved) - keep :] if keep else []
                moved += named.stack[-1 - keep :]
            kept |= {named.stack[-1], *named.tags.values(), *moved}
        for version, committed in self.versions.items():
            if committed.recorded > self.now - grace or committed.payload in held:
                kept.add(version)
        while (
            needed := {self.versions[v].needed for v in kept & self.versions.keys()} - kept - {None}
        ):
            kept |= {version for version in needed if version}
        self.versions = {v: c for v, c in self.versions.items() if v in kept}


class StoreHistory(RuleBasedStateMachine):
    """Compares a store with a model, with a failure at any operation on the disk."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory(dir=_FAST)
        self._root = Path(self._folder.name) / "store"
        self._model = Model()
        self._known: list[VersionId] = []
        self._open()
        # Another process: it lives on when ours is stopped.
        self._reader = AdapterStore(self._root)
        self._held: list[tuple[bytes, ExitStack]] = []

    def _open(self) -> None:
        self._disk = FaultyDisk()
        self._store = AdapterStore(self._root, disk=self._disk, clock=lambda: self._model.now)

    @override
    def teardown(self) -> None:
        for _, lease in self._held:
            lease.close()
        self._reader.close()
        self._store.close()
        self._folder.cleanup()

    def _do(
        self,
        action: Callable[[], object],
        expect: Callable[[Model], None],
        failure: Failure | None = None,
    ) -> bool:
        """Do something to the store and the model; tell whether it was acknowledged."""
        before, after = self._model, copy.deepcopy(self._model)
        try:
            expect(after)
        except HyprstreamError as error:
            with pytest.raises(type(error)):
                action()
            return False
        if failure is not None:
            self._disk.arm(failure.at, "before" if failure.how == "power" else failure.how)
        try:
            action()
        except StorageFullError:
            assert failure is not None
        except Stopped:
            assert failure is not None
            self._start_again(failure.seed if failure.how == "power" else None)
        else:
            self._model = after
            self._disk.arm(None, "")
            return True
        self._disk.arm(None, "")
        # Not acknowledged: it happened, or it did not.
        found = self._state(self._store)
        assert found in (_seen(before), _seen(after))
        self._model = after if found == _seen(after) else before
        return False

    def _start_again(self, seed: int | None) -> None:
        """Let the process end and another one begin; with a seed, power is lost in between."""
        self._store.close()
        if seed is not None:
            random = Random(seed)  # noqa: S311 - a choice of a test
            self._disk.lose_power(lambda: random.random() < 0.7)
        self._open()

    def _state(self, store: AdapterStore) -> object:
        names = {}
        for adapter in store.list():
            moves = [(move.action, move.version, move.at) for move in store.history(adapter.name)]
            assert store.current(adapter.name) == adapter.version
            canary = store.canaries.of(adapter.name)
            names[adapter.name] = (
                adapter.version,
                moves,
                store.tags(adapter.name),
                None if canary is None else canary.version,
            )
        with closing(sqlite3.connect(self._root / "names.db")) as db:
            versions = {version for (version,) in db.execute("SELECT id FROM versions")}
        return names, versions

    def _version(self, pick: int) -> VersionId:
        """Pick a version that exists; one time in eight, one that may be gone."""
        versions = self._known if pick % 8 == 7 else sorted(self._model.versions)
        return versions[pick // 8 % len(versions)] if versions else UNKNOWN

    @initialize(payloads=st.lists(PAYLOADS, min_size=2, max_size=3, unique=True))
    def begin(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            self.commit(payload, None, False, None)
        for name in (AdapterName("support"), AdapterName("team/poet")):
            self.create(name, 0, None)

    @rule(seed=st.none() | st.integers(0, 255))
    def start_again(self, seed: int | None) -> None:
        self._start_again(seed)

    @rule(payload=PAYLOADS, parent=st.none() | PICK, needs=st.booleans(), failure=FAILURES)
    def commit(
        self, payload: bytes, parent: int | None, needs: bool, failure: Failure | None
    ) -> None:
        from_version = None if parent is None else self._version(parent)
        made = draft(parent=from_version, needs_parent=needs and from_version is not None)
        version = _id(made, payload, self._model.now)
        if version not in self._known:
            self._known.append(version)

        def expect(model: Model) -> None:
            if made.needs_parent and made.parent is not None:
                model.require(made.parent)
            model.versions[version] = Committed(
                payload, model.now, made.parent if made.needs_parent else None
            )

        self._do(lambda: self._store.commit(payload, made), expect, failure)

    @rule(name=NAMES, to=PICK, failure=FAILURES)
    def create(self, name: AdapterName, to: int, failure: Failure | None) -> None:
        version = self._version(to)
        self._do(
            lambda: self._store.create(name, version, Note(by="test", why="to see")),
            lambda model: model.create(name, version),
            failure,
        )

    @rule(name=NAMES, to=PICK, stale=st.none() | PICK, failure=FAILURES)
    def promote(
        self, name: AdapterName, to: int, stale: int | None, failure: Failure | None
    ) -> None:
        version, named = self._version(to), self._model.names.get(name)
        expected = named.stack[-1] if named and stale is None else self._version(stale or 0)
        self._do(
            lambda: self._store.promote(name, version, expected=expected),
            lambda model: model.promote(name, version, expected),
            failure,
        )

    @rule(name=NAMES, failure=FAILURES)
    def rollback(self, name: AdapterName, failure: Failure | None) -> None:
        self._do(lambda: self._store.rollback(name), lambda model: model.rollback(name), failure)

    @rule(name=NAMES, tag=TAGS, to=PICK, failure=FAILURES)
    def tag(self, name: AdapterName, tag: str, to: int, failure: Failure | None) -> None:
        version = self._version(to)
        self._do(
            lambda: self._store.tag(AdapterRef(name=name, tag=tag), version),
            lambda model: model.tag(name, tag, version),
            failure,
        )

    @rule(name=NAMES, tag=TAGS, failure=FAILURES)
    def untag(self, name: AdapterName, tag: str, failure: Failure | None) -> None:
        self._do(
            lambda: self._store.untag(AdapterRef(name=name, tag=tag)),
            lambda model: model.untag(name, tag),
            failure,
        )

    @rule(name=NAMES, to=PICK, stale=st.none() | PICK, failure=FAILURES)
    def begin_canary(
        self, name: AdapterName, to: int, stale: int | None, failure: Failure | None
    ) -> None:
        version, named = self._version(to), self._model.names.get(name)
        parent = named.stack[-1] if named and stale is None else self._version(stale or 0)
        self._do(
            lambda: self._store.canaries.begin(name, version, parent=parent, share=0.5),
            lambda model: model.begin_canary(name, version, parent),
            failure,
        )

    @rule(name=NAMES, stale=st.none() | PICK, promotes=st.booleans(), failure=FAILURES)
    def end_canary(
        self, name: AdapterName, stale: int | None, promotes: bool, failure: Failure | None
    ) -> None:
        named, canaries = self._model.names.get(name), self._store.canaries
        is_out = stale is None and named is not None and named.canary is not None
        version = named.canary if named and is_out else self._version(stale or 0)
        assert version is not None
        end = canaries.promote if promotes else canaries.withdraw
        self._do(
            lambda: end(name, version),
            lambda model: model.end_canary(name, version, promotes=promotes),
            failure,
        )

    @rule(name=NAMES, failure=FAILURES)
    def delete(self, name: AdapterName, failure: Failure | None) -> None:
        self._do(lambda: self._store.delete(name), lambda model: model.delete(name), failure)

    @rule(keep=st.none() | st.integers(0, 2), hours=st.sampled_from([0, 2, 48]), failure=FAILURES)
    def collect(self, keep: int | None, hours: int, failure: Failure | None) -> None:
        grace, held = timedelta(hours=hours), {payload for payload, _ in self._held}
        done = self._do(
            lambda: self._store.collect(keep_history=keep, grace=grace),
            lambda model: model.collect(keep, grace, held),
            failure,
        )
        if done:  # everything that failures left is gone
            kept = {hashlib.sha256(c.payload).hexdigest() for c in self._model.versions.values()}
            assert {file.name for file in (self._root / "payloads").iterdir()} == kept
            assert list((self._root / "temp").iterdir()) == []

    @precondition(lambda self: self._model.versions)
    @rule(pick=PICK)
    def begin_to_read(self, pick: int) -> None:
        version = sorted(self._model.versions)[pick % len(self._model.versions)]
        lease = ExitStack()
        file = lease.enter_context(self._reader.open(version))
        assert file.read_bytes() == self._model.versions[version].payload
        self._held.append((self._model.versions[version].payload, lease))

    @precondition(lambda self: self._held)
    @rule()
    def end_reading(self) -> None:
        self._held.pop()[1].close()

    @rule(hours=st.sampled_from([1, 24]))
    def pass_time(self, hours: int) -> None:
        self._model.now += timedelta(hours=hours)

    @invariant()
    def what_is_there_is_what_was_acknowledged(self) -> None:
        assert self._state(self._reader) == _seen(self._model)

    @invariant()
    def a_canary_answers_its_share_and_its_parent_the_others(self) -> None:
        for name, named in self._model.names.items():
            ref, found = AdapterRef(name=name), set()
            for number in range(2):
                version = self._reader.resolve(ref, f"key {number}")
                found.add(version)
            assert named.stack[-1] == self._reader.resolve(ref)
            assert found <= {named.stack[-1], named.canary or named.stack[-1]}

    @invariant()
    def every_version_is_what_its_id_says(self) -> None:
        assert self._store.verify() == ()


def _id(made: Draft, payload: bytes, now: datetime) -> VersionId:
    described = Payload(sha256=hashlib.sha256(payload).hexdigest(), size_bytes=len(payload))
    return made.complete(described, now).version


def _seen(model: Model) -> object:
    names = {
        name: (named.stack[-1], named.moves, named.tags, named.canary)
        for name, named in model.names.items()
    }
    return names, set(model.versions)


class LongStoreHistory(StoreHistory):
    """The same for minutes."""


TestStoreHistory = StoreHistory.TestCase
TestStoreHistory.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)

TestLongStoreHistory = pytest.mark.slow(LongStoreHistory.TestCase)
TestLongStoreHistory.settings = settings(
    max_examples=300, stateful_step_count=40, deadline=None, suppress_health_check=[*HealthCheck]
)
