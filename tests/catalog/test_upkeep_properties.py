"""Kept, cleaned and mended in any order, no wanted byte is lost and none is miscounted."""

import hashlib
import itertools
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from typing_extensions import override

from hyprstream.catalog.cache import ModelCache
from hyprstream.catalog.card import ModelCard, Progress, SilentProgress
from hyprstream.catalog.repair import repair
from hyprstream.catalog.staging import Staging
from hyprstream.refs import ModelRef
from tests.catalog.fakes import contents, put

NAMES = st.sampled_from(["tiny", "org/tiny"])
REVISIONS = st.sampled_from(["1", "2", "3"])
CONTENT = st.sampled_from([b"one", b"three", b"seven"])
FILES = st.fixed_dictionaries({"config.json": CONTENT}, optional={"a.safetensors": CONTENT})
Key = tuple[str, str]


def _ref(key: Key) -> ModelRef:
    return ModelRef(scheme="pypi", name=key[0], revision=key[1])


class Upkeep(RuleBasedStateMachine):
    """Compares a cache with dictionaries: files, what of them is there, and what lies about."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self._root = Path(self._folder.name)
        self._cache = ModelCache(self._root)
        self._models: dict[Key, dict[str, bytes]] = {}
        self._stripped: set[Key] = set()
        self._newest: dict[str, str] = {}
        self._order: dict[Key, int] = {}
        self._numbers = itertools.count()
        self._litter: dict[Path, int] = {}  # until the next collection
        self._quarantined: dict[Path, int] = {}  # until it is cleaned

    @override
    def teardown(self) -> None:
        self._folder.cleanup()

    @rule(name=NAMES, revision=REVISIONS, pinned=st.booleans(), files=FILES)
    def fetch(self, name: str, revision: str, pinned: bool, files: dict[str, bytes]) -> None:
        put(self._cache, files, name=name, revision=revision, pinned=pinned)
        self._models[name, revision] = files
        self._stripped.discard((name, revision))
        self._order[name, revision] = next(self._numbers)
        if not pinned:
            self._newest[name] = revision
        self._litter.clear()

    @precondition(lambda self: self._models)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self._models)))
        before = self._kept_bytes() + sum(self._litter.values())
        freed_bytes = self._cache.remove(_ref(key))
        self._forget(key)
        self._litter.clear()
        assert freed_bytes == before - self._kept_bytes()

    @precondition(lambda self: self._models)
    @rule(data=st.data())
    def remove_weights(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self._models)))
        before = self._kept_bytes() + sum(self._litter.values())
        freed_bytes = self._cache.remove_weights(_ref(key), lambda model: str(model.path).encode())
        if key not in self._stripped:
            self._stripped.add(key)
            self._litter.clear()
        assert freed_bytes == before - self._kept_bytes() - sum(self._litter.values())
        description = self._cache.shelf.description(_ref(key))
        assert description == str(self._cache.shelf.view(_ref(key))).encode()

    @rule(kind=st.sampled_from(["temp", "blob", "view"]), content=CONTENT)
    def leave(self, kind: str, content: bytes) -> None:
        """Do as a process that is killed."""
        number = next(self._numbers)
        content += b" and something of its own %d" % number
        places = {
            "temp": (f"temp/pypi+other{number}", "attempt/0.part"),
            "blob": (f"blobs/sha256/{hashlib.sha256(content).hexdigest()}", ""),
            "view": (f"models/pypi/other/{number}", "config.json"),
        }
        place, below = places[kind]
        file = self._root / place / below
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        self._litter[self._root / place] = len(content)

    @precondition(lambda self: self._models)
    @rule(data=st.data(), foreign=st.booleans(), harm=st.sampled_from(["none", "lose", "flip"]))
    def damage_and_repair(self, data: st.DataObject, foreign: bool, harm: str) -> None:
        whole = sorted(self._models.keys() - self._stripped)
        if not whole:
            return
        key = data.draw(st.sampled_from(whole))
        name = data.draw(st.sampled_from(sorted(self._models[key])))
        view, files = self._cache.shelf.view(_ref(key)), self._models[key]
        if foreign:
            (view / "foreign").write_bytes(b"foreign")
        if harm != "none":
            (view / name).unlink()
        if harm == "flip":
            (view / name).write_bytes(files[name].upper())
        expected = ({"foreign"} if foreign else set()) | ({name} if harm != "none" else set())
        assert {damage.file for damage in self._cache.verify(_ref(key))} == expected

        def fetch(ref: ModelRef, _: Staging, __: Progress, ___: Sequence[str]) -> ModelCard:
            raise AssertionError(f"{ref} is here")

        done = repair(self._cache, fetch, _ref(key), SilentProgress())
        for file in done.quarantined:
            place = self._cache.shelf.quarantine(_ref(key))
            assert file.read_bytes() == b"foreign"
            self._quarantined[place] = self._quarantined.get(place, 0) + len(b"foreign")
        if harm != "none":
            self._litter.clear()  # a commit collects
            self._order[key] = next(self._numbers)
        assert contents(view) == files

    @rule(old=st.booleans())
    def clean(self, old: bool) -> None:
        found = self._cache.leftovers(old_revisions=old)
        gone = set(self._old()) if old else set()
        others = {item.path: item.size_bytes for item in found if item.kind != "old revision"}
        assert others == self._litter | self._quarantined
        assert {item.name for item in found if item.kind == "old revision"} == {
            str(_ref(key)) for key in gone
        }
        before = self._kept_bytes()
        freed_bytes = self._cache.clean(found)
        for key in gone:
            self._forget(key)
        assert freed_bytes == sum(item.size_bytes for item in found)
        assert freed_bytes == before - self._kept_bytes() + sum(others.values())
        self._litter.clear()
        self._quarantined.clear()
        assert self._cache.leftovers(old_revisions=old) == []

    @invariant()
    def every_model_is_what_it_shall_be(self) -> None:
        states = {}
        for key, files in self._models.items():
            kept = self._present(key)
            assert contents(self._cache.shelf.view(_ref(key))) == kept
            found = self._cache.find(_ref(key))
            assert (found is not None) == (kept == files)
            states[str(_ref(key))] = "complete" if kept == files else "metadata only"
            assert self._cache.verify(_ref(key)) == []
        assert {str(model.card.ref): model.state for model in self._cache.models()} == states

    @invariant()
    def the_use_of_the_disk_is_counted_right(self) -> None:
        status = self._cache.status()
        owners = Counter(content for key in self._models for content in self._contents(key))
        assert status.unique_bytes == sum(len(it) for it, count in owners.items() if count == 1)
        assert status.shared_bytes == sum(len(it) for it, count in owners.items() if count > 1)
        assert status.unused_bytes == sum(
            size for place, size in self._litter.items() if place.parent.name == "sha256"
        )
        assert {model.ref: model.size_bytes for model in status.models} == {
            _ref(key): sum(map(len, self._contents(key))) for key in self._models
        }
        extras = sum(self._litter.values()) + sum(self._quarantined.values())
        notes = sum(len(file.read_bytes()) for file in self._root.glob("manifests/*/*/*"))
        assert status.total_bytes == sum(map(len, owners)) + extras + notes
        assert (status.num_unreadable, status.staged_bytes) == (0, 0)
        assert {item.path: item.size_bytes for item in status.leftovers} == (
            self._litter | self._quarantined
        )

    def _present(self, key: Key) -> dict[str, bytes]:
        files = self._models[key]
        if key in self._stripped:
            return {name: content for name, content in files.items() if name == "config.json"}
        return files

    def _contents(self, key: Key) -> set[bytes]:
        return set(self._present(key).values())

    def _kept_bytes(self) -> int:
        return sum(map(len, {content for key in self._models for content in self._contents(key)}))

    def _old(self) -> Iterator[Key]:
        for name in {name for name, _ in self._models}:
            mine = [key for key in self._models if key[0] == name]
            latest = max(mine, key=lambda key: self._order[key])[1]
            newest = self._newest.get(name, latest)
            yield from (key for key in mine if key[1] != newest)

    def _forget(self, key: Key) -> None:
        del self._models[key]
        self._stripped.discard(key)
        if self._newest.get(key[0]) == key[1]:
            del self._newest[key[0]]


TestUpkeep = Upkeep.TestCase
TestUpkeep.settings = settings(max_examples=12, stateful_step_count=12, deadline=None)
