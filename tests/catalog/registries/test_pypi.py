"""The real pip against a real index on loopback."""

import hashlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hyprstream.catalog.cache import ModelCache
from hyprstream.catalog.catalog import Catalog
from hyprstream.catalog.registries import pypi
from hyprstream.errors import (
    ChecksumMismatchError,
    CorruptArchiveError,
    HyprstreamError,
    InvalidReferenceError,
    ModelNotFoundError,
    RegistryUnreachableError,
    StorageFullError,
    UnavailableError,
    UnsupportedError,
)
from hyprstream.refs import ModelRef
from tests.catalog.fakes import Recorder, contents
from tests.catalog.package_index import PackageIndex, pip_environ
from tests.catalog.wheels import FOLDER_MODEL, GGUF, build_wheel

TINY = ModelRef.parse("pypi://tiny-model")
TINY_1 = ModelRef.parse("pypi://tiny-model@1.0")


def _nothing_visible(cache_root: Path) -> bool:
    return not [name for name in contents(cache_root) if not name.startswith("locks/")]


def test_a_package_becomes_a_model(
    catalog: Catalog, index: PackageIndex, wheels: Path, progress: Recorder
):
    wheel = build_wheel(wheels, {"tiny/a.gguf": GGUF, "tiny/__init__.py": b"1 / 0"})
    path = catalog.pull(TINY, progress)
    assert (path.name, path.read_bytes()) == ("a.gguf", GGUF)
    (model,) = catalog.list()
    assert model.card.ref == TINY_1
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert model.card.source == f"{wheel.name} sha256:{digest}"
    assert index.num_downloads == 1


def test_a_folder_model_comes_with_its_data_files(catalog: Catalog, wheels: Path):
    build_wheel(wheels, FOLDER_MODEL)
    path = catalog.pull(TINY)
    assert sorted(contents(path)) == [
        *("1_Pooling/config.json", "LICENSE", "config.json", "model.safetensors", "tokenizer.json")
    ]


def test_every_phase_that_begins_ends(catalog: Catalog, wheels: Path, progress: Recorder):
    build_wheel(wheels, {"tiny/a.gguf": os.urandom(1 << 20)})
    catalog.pull(TINY, progress)
    names = [name.split()[0] for name, _ in progress.phases]
    assert names == ["looking", "downloading", "unpacking"]
    assert progress.num_done == 3


def test_what_is_cached_needs_no_index(catalog: Catalog, index: PackageIndex, wheels: Path):
    build_wheel(wheels, {"tiny/a.gguf": GGUF})
    path = catalog.pull(TINY)
    index.requests.clear()
    assert catalog.pull(TINY) == catalog.pull(TINY_1) == catalog.find(TINY) == path
    assert not index.requests


def test_force_fetches_again(catalog: Catalog, index: PackageIndex, wheels: Path):
    build_wheel(wheels, {"tiny/a.gguf": GGUF})
    catalog.pull(TINY)
    assert catalog.pull(TINY, force=True).read_bytes() == GGUF
    assert index.num_downloads == 2


def test_a_version_is_pinned_by_its_revision(catalog: Catalog, wheels: Path):
    build_wheel(wheels, {"tiny/a.gguf": b"old" * 99}, version="1.0")
    build_wheel(wheels, {"tiny/a.gguf": b"new" * 99}, version="2.0")
    assert catalog.pull(TINY_1).read_bytes() == b"old" * 99
    assert catalog.pull(TINY).read_bytes() == b"new" * 99
    assert [str(model.card.ref) for model in catalog.list()] == [
        "pypi://tiny-model@1.0",
        "pypi://tiny-model@2.0",
    ]


def test_one_of_several_models_is_chosen_by_its_path(catalog: Catalog, wheels: Path):
    build_wheel(wheels, {"m/q4.gguf": b"four" * 99, "m/q8.gguf": b"eight" * 99})
    with pytest.raises(InvalidReferenceError, match="several models"):
        catalog.pull(TINY)
    path = catalog.pull(ModelRef.parse("pypi://tiny-model/q8.gguf"))
    assert path.read_bytes() == b"eight" * 99


@pytest.mark.parametrize("name", ["Tiny_Model", "tiny.model", "TINY--MODEL", "tiny-model"])
def test_all_spellings_of_a_package_are_one_model(catalog: Catalog, name: str):
    assert catalog.resolve(f"pypi://{name}@1.0") == TINY_1


@pytest.mark.parametrize("text", ["pypi://tiny-", "pypi://_tiny", "pypi://tiny@_1", "pypi://a@1/2"])
def test_what_pip_might_misunderstand_is_refused(catalog: Catalog, text: str):
    with pytest.raises(InvalidReferenceError):
        catalog.resolve(text)


def test_an_unknown_package_is_not_found(catalog: Catalog):
    with pytest.raises(ModelNotFoundError, match="no wheel for pypi://tiny-model") as caught:
        catalog.pull(TINY)
    assert "Check the name" in caught.value.hint


def test_an_unknown_version_names_the_known_ones(catalog: Catalog, wheels: Path):
    build_wheel(wheels, {"tiny/a.gguf": GGUF}, version="1.0")
    build_wheel(wheels, {"tiny/a.gguf": GGUF}, version="1.1")
    with pytest.raises(ModelNotFoundError) as caught:
        catalog.pull(ModelRef.parse("pypi://tiny-model@9"))
    assert caught.value.hint == "Versions there: 1.0, 1.1."


def test_an_index_that_fails_is_unreachable(catalog: Catalog, index: PackageIndex):
    index.status = 500
    with pytest.raises(RegistryUnreachableError, match="500"):
        catalog.pull(TINY)


def test_an_index_that_is_not_there_is_unreachable(cache: ModelCache):
    environ = pip_environ(PIP_INDEX_URL="http://127.0.0.1:9/simple")
    with pytest.raises(RegistryUnreachableError, match="onnection"):
        Catalog(cache, environ=environ).pull(TINY)


def test_a_folder_of_wheels_serves_without_an_index(cache: ModelCache, wheels: Path):
    build_wheel(wheels, {"tiny/a.gguf": GGUF})
    environ = pip_environ(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheels))
    assert Catalog(cache, environ=environ).pull(TINY).read_bytes() == GGUF


def test_a_configuration_that_brings_other_packages_too_is_refused(
    cache: ModelCache, index: PackageIndex, wheels: Path, tmp_path: Path
):
    build_wheel(wheels, {"tiny/a.gguf": GGUF})
    build_wheel(wheels, {"tiny/a.gguf": GGUF}, package="other")
    (tmp_path / "more.txt").write_text("other")
    environ = index.environ | {"PIP_REQUIREMENT": str(tmp_path / "more.txt")}
    with pytest.raises(UnavailableError, match="pip left 2 wheels"):
        Catalog(cache, environ=environ).pull(TINY)


def test_a_wheel_that_is_not_the_promised_one_is_refused(
    catalog: Catalog, index: PackageIndex, wheels: Path, tmp_path: Path
):
    wheel = build_wheel(wheels, {"tiny/a.gguf": GGUF})
    index.promised[wheel.name] = "0" * 64
    with pytest.raises(ChecksumMismatchError, match="not the one that its index promises"):
        catalog.pull(TINY)
    assert _nothing_visible(tmp_path / "cache")


def test_a_hostile_wheel_leaves_nothing(catalog: Catalog, wheels: Path, tmp_path: Path):
    build_wheel(wheels, {"tiny/a.gguf": GGUF, "../../evil.json": b"{}"})
    with pytest.raises(CorruptArchiveError):
        catalog.pull(TINY)
    assert _nothing_visible(tmp_path / "cache")


def test_a_source_package_is_not_built(catalog: Catalog, index: PackageIndex, wheels: Path):
    (wheels / "tiny_model-1.0.tar.gz").write_bytes(b"would run setup.py")
    with pytest.raises(ModelNotFoundError):
        catalog.pull(TINY)
    assert index.num_downloads == 0


def test_a_file_named_as_pip_in_the_working_folder_is_not_run(
    catalog: Catalog, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    build_wheel(wheels, {"tiny/a.gguf": GGUF})
    (tmp_path / "pip.py").write_text("raise SystemExit('not pip')")
    monkeypatch.chdir(tmp_path)
    assert catalog.pull(TINY).read_bytes() == GGUF


def test_a_full_disk_is_reported_and_leaves_nothing(index: PackageIndex, tmp_path: Path):
    """A limit on file sizes stands for the full disk: the kernel refuses the write."""
    build_wheel(index.folder, {"tiny/a.gguf": os.urandom(200_000) + bytes(800_000)})
    script = """
        import resource, sys, json, os
        from pathlib import Path
        from hyprstream.catalog.cache import ModelCache
        from hyprstream.catalog.catalog import Catalog
        from hyprstream.errors import HyprstreamError
        limit = int(sys.argv[2])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        catalog = Catalog(ModelCache(Path(sys.argv[1])), environ=os.environ)
        try:
            catalog.pull(catalog.resolve("pypi://tiny-model"))
        except HyprstreamError as error:
            print(error.code)
    """
    for limit in ("100000", "500000"):  # too small for the wheel; too small for the model
        result = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), tmp_path / "cache", limit],
            env=index.environ,
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stdout.strip() == "storage_full"
        assert _nothing_visible(tmp_path / "cache")


def test_a_missing_pip_is_said_so(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    # importlib.metadata searches sys.path for pip's dist-info.
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UnsupportedError, match="needs pip") as caught:
        catalog.pull(TINY)
    assert "ensurepip" in caught.value.hint


def test_progress_of_a_new_pip_is_counted_in_bytes(progress: Recorder):
    progress.start("looking", None)
    output = pypi._Output(progress, has_raw_progress=True)
    for line in (
        "Collecting tiny",
        "  Downloading http://host/files/tiny-1.0-py3-none-any.whl (92.9 MB)",
        "Progress 0 of 1000",
        "Progress 400 of 1000",
        "Progress 1000 of 1000",
        "Saved ./tiny-1.0-py3-none-any.whl",
    ):
        output.take(line + "\n")
    assert progress.phases[1:] == [("downloading tiny-1.0-py3-none-any.whl", 1000)]
    assert progress.num_bytes[1:] == [1000]
    assert list(output.lines) == ["Collecting tiny", "Saved ./tiny-1.0-py3-none-any.whl"]


def test_an_old_pip_tells_the_length_as_text(progress: Recorder):
    progress.start("looking", None)
    output = pypi._Output(progress, has_raw_progress=False)
    output.take("  Downloading tiny-1.0-py3-none-any.whl (92.9 MB)\n")
    assert progress.phases[1:] == [("downloading tiny-1.0-py3-none-any.whl (92.9 MB)", None)]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on "
         "device", StorageFullError),
        ("ERROR: HTTP error 503 while getting http://h/x.whl", RegistryUnreachableError),
        ("ReadTimeoutError: HTTPSConnectionPool(host='h', port=443): Read timed out.",
         RegistryUnreachableError),
        ("ProtocolError('Connection broken: IncompleteRead(10 bytes read)')",
         RegistryUnreachableError),
        ("ERROR: something new", UnavailableError),
    ],
)  # fmt: skip
def test_what_pip_says_decides_the_error(line: str, kind: type[HyprstreamError]):
    error = pypi._pip_error(TINY, ["Collecting tiny", line])
    assert type(error) is kind
    assert line.removeprefix("ERROR: ") in str(error)


def test_a_failure_that_pip_overcame_is_not_the_cause():
    lines = [
        "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError('...",
        "ERROR: No matching distribution found for x",
    ]
    assert type(pypi._pip_error(TINY, lines)) is ModelNotFoundError


def test_the_objects_in_what_pip_says_are_left_away():
    line = (
        "Could not fetch URL https://h/simple/x/: connection error: HTTPSConnectionPool(host='h', "
        "port=443): Max retries exceeded with url: /simple/x/ (Caused by NewConnectionError("
        "'<pip._vendor.urllib3.connection.HTTPSConnection object at 0x7f8064ee4990>: Failed to "
        "establish a new connection: [Errno -2] Name or service not known')) - skipping"
    )
    assert str(pypi._pip_error(TINY, [line])) == (
        "the package index did not answer for pypi://tiny-model: "
        "Failed to establish a new connection: [Errno -2] Name or service not known"
    )


def test_a_silent_failure_of_pip_is_reported():
    assert "pip could not download" in str(pypi._pip_error(TINY, []))


def test_a_page_that_is_missing_is_not_a_failure_of_the_index():
    lines = [
        "Could not fetch URL http://h/simple/x/: 404 Client Error: Not Found for url - skipping",
        "ERROR: Could not find a version that satisfies the requirement x (from versions: none)",
        "ERROR: No matching distribution found for x",
    ]
    assert type(pypi._pip_error(TINY, lines)) is ModelNotFoundError
