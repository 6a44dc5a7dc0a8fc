"""Whatever happens to a cache, and wherever a process dies, what is found is whole."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from typing_extensions import override

from hyprstream.catalog.cache import ModelCache
from hyprstream.errors import ModelNotFoundError
from hyprstream.refs import ModelRef
from tests.catalog.fakes import contents, put

NAMES = st.sampled_from(["tiny", "org/tiny"])
REVISIONS = st.sampled_from(["1", "2", "refs/pr/1"])
FILES = st.dictionaries(
    st.sampled_from(["config.json", "a.safetensors", "1_Pooling/config.json"]),
    st.sampled_from([b"", b"one", b"two", b"three"]),
    min_size=1,
)


class CacheHistory(RuleBasedStateMachine):
    """Compares a cache with two dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self._root = Path(self._folder.name)
        self._cache = ModelCache(self._root)
        self._models: dict[tuple[str, str], dict[str, bytes]] = {}
        self._newest: dict[str, str] = {}

    @override
    def teardown(self) -> None:
        self._folder.cleanup()

    @rule(name=NAMES, revision=REVISIONS, pinned=st.booleans(), files=FILES)
    def fetch(self, name: str, revision: str, pinned: bool, files: dict[str, bytes]) -> None:
        put(self._cache, files, name=name, revision=revision, pinned=pinned)
        self._models[name, revision] = files
        if not pinned:
            self._newest[name] = revision

    @rule(name=NAMES, revision=st.none() | REVISIONS)
    def remove(self, name: str, revision: str | None) -> None:
        before = len({content for files in self._models.values() for content in files.values()})
        gone = [key for key in self._models if key in {(name, revision or key[1])}]
        ref = ModelRef(scheme="pypi", name=name, revision=revision)
        if not gone:
            with pytest.raises(ModelNotFoundError):
                self._cache.remove(ref)
            return
        freed_bytes = self._cache.remove(ref)
        for key in gone:
            del self._models[key]
        if (name, self._newest.get(name)) in gone:
            del self._newest[name]
        after = {content for files in self._models.values() for content in files.values()}
        assert (freed_bytes > 0) <= (len(after) < before)

    @rule(name=NAMES, revision=REVISIONS, file=st.integers(0, 2))
    def lose_a_file(self, name: str, revision: str, file: int) -> None:
        """A model that lost a file is not found, though it is listed, until fetched again."""
        model = self._cache.find(ModelRef(scheme="pypi", name=name, revision=revision))
        if model is None:
            return
        names = [entry.name for entry in model.card.files]
        (model.path / names[file % len(names)]).unlink()
        assert self._cache.find(model.card.ref) is None
        self.fetch(name, revision, True, self._models[name, revision])

    @invariant()
    def what_is_found_is_what_was_fetched(self) -> None:
        for (name, revision), files in self._models.items():
            model = self._cache.find(ModelRef(scheme="pypi", name=name, revision=revision))
            assert model is not None
            assert contents(model.path) == files
        listed = {str(model.card.ref) for model in self._cache.models()}
        assert listed == {f"pypi://{name}@{revision}" for name, revision in self._models}

    @invariant()
    def a_reference_without_revision_is_the_last_one_fetched_so(self) -> None:
        for name in ("tiny", "org/tiny"):
            model = self._cache.find(ModelRef(scheme="pypi", name=name))
            found = None if model is None else model.card.ref.revision
            assert found == self._newest.get(name)

    @invariant()
    def content_is_kept_once_and_only_while_used(self) -> None:
        kept = [file.read_bytes() for file in self._root.glob("blobs/sha256/*")]
        used = {content for files in self._models.values() for content in files.values()}
        assert sorted(kept) == sorted(used)
        assert list(self._root.glob("temp/*")) == []


TestCacheHistory = CacheHistory.TestCase
TestCacheHistory.settings = settings(max_examples=20, stateful_step_count=12, deadline=None)


@pytest.mark.parametrize(
    ("action", "ends"),
    [("replace", True), ("remove", True), ("remove weights", True), ("repair", True),
     ("clean", False)],
)  # fmt: skip
def test_a_kill_at_any_file_operation_leaves_whole_models_only(
    tmp_path: Path, action: str, ends: bool
):
    script = Path(__file__).with_name("kill_everywhere.py")
    result = subprocess.run(
        [sys.executable, "-P", script, tmp_path, action],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": os.pathsep.join([str(script.parents[2]), *sys.path])},
    )
    assert result.returncode == 0, result.stderr
    num_kills, num_old, num_none, num_new = map(int, result.stdout.split())
    assert num_kills > 10
    assert num_old > 0  # killed early: what was there is still there
    assert (num_none > 0) == ends  # for a moment, or for good
    assert num_old + num_none + num_new == num_kills
