import hashlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.catalog.connection import Connection
from hyprstream.catalog.downloads import RemoteFile, download
from hyprstream.catalog.partials import Partials
from hyprstream.catalog.staging import Staging
from hyprstream.catalog.web import Credential, Patience, Web
from hyprstream.errors import (
    AuthenticationError,
    ChecksumMismatchError,
    CorruptArchiveError,
    HyprstreamError,
    InvalidReferenceError,
    ModelAccessDeniedError,
    ModelNotFoundError,
    RateLimitedError,
    RegistryAnswerError,
    RegistryUnreachableError,
)
from hyprstream.refs import ModelRef
from tests.catalog.fakes import Recorder
from tests.catalog.servers.faults import Fault, FaultServer, serving

CONTENT = os.urandom(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ETAG = '"one"'
PATH = "/m/tiny.gguf"


class Download:
    """Downloads one file into stagings that share their partials, as a cache's do."""

    def __init__(self, server: FaultServer, folder: Path) -> None:
        self.server = server
        self.partials = Partials(folder / "partial")
        self.folder = folder
        self.waits: list[float] = []
        self.progress = Recorder()
        self.stall_s = 10.0

    def __call__(self, *, path: str = PATH, **promises: Any) -> bytes:
        self.folder.joinpath(f"staging{len(list(self.folder.iterdir()))}").mkdir()
        folder = max(self.folder.glob("staging*"), key=lambda file: file.stat().st_ctime_ns)
        staging = Staging(ModelRef.parse("https://host/tiny"), folder, partials=self.partials)
        patience = Patience(stall_s=self.stall_s, connect_s=10.0, sleep=self.waits.append)
        file = RemoteFile(name="tiny.gguf", url=self.server.url(path), **promises)
        with Web(Connection(environ={}), patience) as web:
            download(web, [file], staging, self.progress, source="a test")
        (entry,) = staging.files
        content = staging.content(entry).read_bytes()
        assert entry.sha256 == hashlib.sha256(content).hexdigest()
        assert entry.size_bytes == len(content)
        staging.forget_partials()
        return content

    @property
    def left(self) -> int:
        """How many bytes of unfinished downloads are kept."""
        return sum(file.stat().st_size for file in self.partials._folder.glob("*.content"))


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with serving(FaultServer()) as server:
        server.put(PATH, CONTENT, etag=ETAG)
        yield server


@pytest.fixture
def fetch(server: FaultServer, tmp_path: Path) -> Download:
    return Download(server, tmp_path)


PROMISES: list[dict[str, Any]] = [
    {},
    {"sha256": SHA256},
    {"size_bytes": len(CONTENT)},
    {"sha256": SHA256, "size_bytes": len(CONTENT)},
]
promised = pytest.mark.parametrize("promises", PROMISES, ids=lambda p: "+".join(p) or "nothing")


@promised
def test_a_file_comes_whole_and_nothing_of_it_stays_behind(fetch: Download, promises: Any):
    assert fetch(**promises) == CONTENT
    assert list(fetch.partials._folder.iterdir()) == []
    assert fetch.progress.num_bytes[-1] == len(CONTENT)
    assert len(fetch.progress.phases) == fetch.progress.num_done
    assert fetch.progress.phases[-1] == ("downloading tiny.gguf", len(CONTENT))


@promised
@pytest.mark.parametrize(
    "fault",
    [
        Fault(cut_at=100_000),
        Fault(reset_at=100_000),
        Fault(stall_at=100_000),
        Fault(cut_at=0),
        Fault(silent=True),
        Fault(status=500),
        Fault(status=503, headers={"Retry-After": "3"}),
        Fault(status=429),
        Fault(status=408),
    ],
    ids=str,
)
def test_what_passes_is_tried_again_and_resumed(
    server: FaultServer, fetch: Download, fault: Fault, promises: Any
):
    server.fail(PATH, fault, times=2)
    fetch.stall_s = 0.5 if fault.stall_at is not None else fetch.stall_s
    assert fetch(**promises) == CONTENT
    # What a reset destroys on its way, at most two socket buffers, is sent again.
    slack = 200_000 if fault.reset_at else 20_000
    assert server.sent_bytes(PATH) <= len(CONTENT) + slack
    assert len(fetch.waits) == 2
    assert fetch.progress.num_bytes[-1] == len(CONTENT)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(cut_at=2_500_000),
        Fault(reset_at=2_500_000),
        Fault(stall_at=2_500_000),
        Fault(length=-1),
    ],
    ids=str,
)
def test_long_files_are_read_in_large_pieces(server: FaultServer, fetch: Download, fault: Fault):
    content = os.urandom(4_000_000)
    server.put(PATH, content, etag=ETAG)
    server.fail(PATH, fault, times=1)
    fetch.stall_s = 0.5 if fault.stall_at is not None else fetch.stall_s
    assert fetch(sha256=hashlib.sha256(content).hexdigest()) == content
    assert len(fetch.waits) == (fault.length is None)
    if not fault.reset_at:  # which destroys what is on its way
        assert server.sent_bytes(PATH) <= len(content) + 20_000


def test_what_never_passes_ends_and_what_came_is_continued_later(
    server: FaultServer, fetch: Download
):
    server.fail(PATH, Fault(cut_at=100_000), times=1)
    server.fail(PATH, Fault(cut_at=0))
    with pytest.raises(RegistryUnreachableError, match=r"connection to .* failed") as caught:
        fetch(sha256=SHA256)
    assert "is kept" in caught.value.hint
    assert len(fetch.waits) == 3
    assert fetch.left == 100_000
    server.heal()
    before = server.sent_bytes()
    assert fetch(sha256=SHA256) == CONTENT
    assert server.sent_bytes() - before == len(CONTENT) - 100_000
    assert server.seen[-1].headers["range"] == "bytes=100000-"


def test_without_a_promise_the_rest_is_asked_for_only_if_nothing_changed(
    server: FaultServer, fetch: Download
):
    server.fail(PATH, Fault(cut_at=100_000), times=1)
    server.fail(PATH, Fault(cut_at=0), times=3)
    with pytest.raises(RegistryUnreachableError):
        fetch()
    changed = os.urandom(200_000)
    server.put(PATH, changed, etag='"two"')
    assert fetch() == changed
    assert server.seen[-1].headers["if-range"] == ETAG


@pytest.mark.parametrize(
    "validators",
    [{}, {"etag": 'W/"weak"'}, {"last_modified": "nonsense"}],
    ids=["none", "weak", "nonsense"],
)
def test_without_promise_and_validator_all_comes_again(
    server: FaultServer, fetch: Download, validators: Any
):
    server.put(PATH, CONTENT, **validators)
    server.fail(PATH, Fault(cut_at=100_000), times=1)
    assert fetch() == CONTENT
    assert server.sent_bytes() == len(CONTENT) + 100_000
    assert "range" not in server.seen[-1].headers


def test_an_old_date_validates(server: FaultServer, fetch: Download):
    date = "Mon, 01 Jan 2024 00:00:00 GMT"
    server.put(PATH, CONTENT, last_modified=date)
    server.fail(PATH, Fault(cut_at=100_000), times=1)
    assert fetch() == CONTENT
    assert server.sent_bytes() == len(CONTENT)
    assert server.seen[-1].headers["if-range"] == date


@promised
@pytest.mark.parametrize(
    "lie",
    [
        Fault(ignores_range=True),
        Fault(content_range="bytes 0-199999/300000"),
        Fault(content_range="bytes 100000-299998/300000"),
        Fault(content_range="bytes 100000-299999/299999"),
        Fault(content_range="items 1-2/3"),
        Fault(content_range=""),
        Fault(status=416),
        Fault(status=416, headers={"Content-Range": "bytes */100000"}),
        Fault(status=416, headers={"Content-Range": "bytes */5"}),
    ],
    ids=str,
)
def test_ranges_that_lie_are_not_believed(
    server: FaultServer, fetch: Download, lie: Fault, promises: Any
):
    server.fail(PATH, Fault(cut_at=100_000), times=1)
    server.fail(PATH, lie, times=1)
    assert fetch(**promises) == CONTENT


def test_a_server_that_never_continues_ends(server: FaultServer, fetch: Download):
    server.fail(PATH, Fault(ignores_range=True, cut_at=200_000))
    with pytest.raises(RegistryUnreachableError):
        fetch(sha256=SHA256)
    assert server.sent_bytes() == 4 * 200_000


def test_a_wrong_hash_is_found_and_thrown_away(server: FaultServer, fetch: Download):
    with pytest.raises(ChecksumMismatchError, match=f"has the SHA-256 {SHA256}, not 0000"):
        fetch(sha256="0" * 64)
    assert fetch.left == 0
    assert len(server.seen) == 1


@pytest.mark.parametrize("promised_bytes", [len(CONTENT) - 1, len(CONTENT) + 1])
def test_a_wrong_length_is_found_before_the_content_comes(fetch: Download, promised_bytes: int):
    with pytest.raises(ChecksumMismatchError, match=f"has 300,000 bytes, {promised_bytes:,} were"):
        fetch(size_bytes=promised_bytes)
    assert fetch.left == 0


def test_more_than_promised_is_not_taken(server: FaultServer, fetch: Download):
    server.fail(PATH, Fault(length=-1, body=CONTENT + b"more"))
    with pytest.raises(ChecksumMismatchError, match="has more than 300,000 bytes"):
        fetch(size_bytes=len(CONTENT))
    assert fetch.left == 0


def test_a_length_that_nobody_knows_is_refused_without_a_promise(
    server: FaultServer, fetch: Download
):
    server.fail(PATH, Fault(length=-1))
    with pytest.raises(RegistryAnswerError, match="does not say how long"):
        fetch()
    assert fetch(sha256=SHA256) == CONTENT


def test_less_than_announced_is_not_complete(server: FaultServer, fetch: Download):
    server.fail(PATH, Fault(length=len(CONTENT), body=CONTENT[:1000]), times=1)
    assert fetch() == CONTENT
    assert server.sent_bytes() == len(CONTENT)


def test_damage_in_what_an_earlier_process_left_is_repaired(server: FaultServer, fetch: Download):
    server.fail(PATH, Fault(cut_at=100_000), times=1)
    server.fail(PATH, Fault(cut_at=0), times=3)
    with pytest.raises(RegistryUnreachableError):
        fetch(sha256=SHA256)
    (file,) = fetch.partials._folder.glob("*.content")
    file.write_bytes(b"\0" * 100_000)
    assert fetch(sha256=SHA256) == CONTENT


@pytest.mark.parametrize("about", [b"", b"{}", b"[]", b'{"validator": 1, "size_bytes": "x"}'])
def test_an_unpromised_part_of_which_nothing_is_known_is_thrown_away(
    server: FaultServer, fetch: Download, about: bytes
):
    server.fail(PATH, Fault(cut_at=100_000), times=1)
    server.fail(PATH, Fault(cut_at=0), times=3)
    with pytest.raises(RegistryUnreachableError):
        fetch()
    (file,) = fetch.partials._folder.glob("*.json")
    file.write_bytes(about)
    assert fetch() == CONTENT
    assert "range" not in server.seen[-1].headers


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, AuthenticationError),
        (403, ModelAccessDeniedError),
        (404, ModelNotFoundError),
        (410, ModelNotFoundError),
        (418, RegistryAnswerError),
        (206, RegistryAnswerError),
        (304, RegistryAnswerError),
    ],
)
def test_what_does_not_pass_is_not_tried_again(
    server: FaultServer, fetch: Download, status: int, kind: type[HyprstreamError]
):
    server.fail(PATH, Fault(status=status))
    with pytest.raises(kind, match=r"127\.0\.0\.1"):
        fetch()
    assert len(server.seen) == 1


def test_a_server_may_say_when_to_ask_again(server: FaultServer, fetch: Download):
    server.fail(PATH, Fault(status=429, headers={"Retry-After": "7"}), times=1)
    assert fetch() == CONTENT
    assert fetch.waits == [7]


@pytest.mark.parametrize("when", ["3600", "Fri, 01 Jan 2100 00:00:00 GMT"])
def test_a_server_that_wants_a_long_pause_is_not_waited_for(
    server: FaultServer, fetch: Download, when: str
):
    server.fail(PATH, Fault(status=429, headers={"Retry-After": when}))
    with pytest.raises(RateLimitedError) as caught:
        fetch()
    assert (caught.value.retry_after_s or 0) >= 3600
    assert fetch.waits == []


def test_a_server_that_drips_is_not_waited_for(server: FaultServer, fetch: Download):
    server.fail(PATH, Fault(bytes_per_s=500), times=1)
    fetch.stall_s = 0.5
    assert fetch(sha256=SHA256) == CONTENT
    assert "range" in server.seen[-1].headers
    assert len(fetch.waits) >= 1


def test_waits_double(server: FaultServer, fetch: Download):
    server.fail(PATH, Fault(status=500))
    with pytest.raises(RegistryUnreachableError, match="answers 500"):
        fetch()
    for wait, longest in zip(fetch.waits, (0.5, 1.0, 2.0), strict=True):
        assert longest / 2 <= wait <= longest


def test_packed_content_is_refused(server: FaultServer, fetch: Download):
    server.fail(PATH, Fault(headers={"Content-Encoding": "gzip"}))
    with pytest.raises(RegistryAnswerError, match="packed with 'gzip'"):
        fetch()
    assert server.seen[0].headers["accept-encoding"] == "identity"


def test_a_token_is_sent_where_it_belongs(server: FaultServer, fetch: Download):
    server.tokens["/m/"] = "secret"
    credential = Credential(token="secret", origin=server.url(""))  # noqa: S106
    assert fetch(credential=credential) == CONTENT
    with pytest.raises(AuthenticationError, match="asks for a token"):
        fetch()
    wrong = Credential(token="wrong", origin=server.url(""))  # noqa: S106
    with pytest.raises(AuthenticationError, match="does not accept"):
        fetch(credential=wrong)
    assert "secret" not in repr(credential)


def test_a_file_that_the_cache_has_is_not_fetched(server: FaultServer, tmp_path: Path):
    blobs, folder = tmp_path / "blobs", tmp_path / "staging"
    blobs.mkdir()
    folder.mkdir()
    (blobs / SHA256).write_bytes(CONTENT)
    file = RemoteFile(name="a.gguf", url=server.url(PATH), sha256=SHA256)
    staging = Staging(ModelRef.parse("https://host/tiny"), folder, blobs=blobs)
    with Web(Connection(environ={})) as web:
        download(web, [file], staging, Recorder(), source="a test")
        assert [entry.name for entry in staging.files] == ["a.gguf"]
        assert server.seen == []
        (blobs / SHA256).write_bytes(b"damaged")
        other = RemoteFile(name="b.gguf", url=server.url(PATH), sha256=SHA256)
        download(web, [other], staging, Recorder(), source="a test")
    assert len(server.seen) == 1


@pytest.mark.parametrize("name", ["../x", "/x", "a/../b", "con", "a.", "a\\b", "", ".x", "x" * 300])
def test_names_that_could_leave_their_folder_are_refused(name: str):
    with pytest.raises(InvalidReferenceError, match="is not a file name"):
        RemoteFile(name=name, url="https://host/x")


def test_names_that_differ_only_in_case_are_refused(server: FaultServer, staging: Staging):
    files = [RemoteFile(name=name, url=server.url(PATH)) for name in ("a.gguf", "A.gguf")]
    with (
        Web(Connection(environ={})) as web,
        pytest.raises(CorruptArchiveError, match="differ only in case"),
    ):
        download(web, files, staging, Recorder(), source="a test")
    assert server.seen == []


NUMBERS = st.none() | st.integers(0, len(CONTENT))
FAULTS = st.builds(
    Fault,
    status=st.none() | st.sampled_from([200, 206, 404, 416, 429, 500]),
    headers=st.dictionaries(
        st.sampled_from(
            ["Content-Range", "Content-Length", "ETag", "Location", "Content-Encoding"]
        ),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12)
        | st.sampled_from(["bytes */300000", "bytes 0-1/2", '"one"', "gzip"]),
        max_size=2,
    ),
    body=st.none() | st.binary(max_size=64),
    cut_at=NUMBERS,
    reset_at=NUMBERS,
    length=NUMBERS,
    content_range=st.none()
    | st.builds(
        "bytes {}-{}/{}".format, st.integers(0, 10), st.integers(0, 10), st.integers(0, 10)
    ),
    ignores_range=st.booleans(),
    silent=st.booleans(),
)


@settings(deadline=None, max_examples=15)
@given(faults=st.lists(FAULTS, min_size=1, max_size=4))
def test_whatever_a_server_does_the_content_is_right_or_an_error_is_raised(faults: list[Fault]):
    with serving(FaultServer()) as server, TemporaryDirectory() as folder:
        server.put(PATH, CONTENT, etag=ETAG)
        for fault in faults:
            server.fail(PATH, fault, times=1)
        fetch = Download(server, Path(folder))
        fetch.stall_s = 0.5
        with suppress(HyprstreamError):
            assert fetch(sha256=SHA256, size_bytes=len(CONTENT)) == CONTENT
        server.heal()
        assert fetch(sha256=SHA256, size_bytes=len(CONTENT)) == CONTENT
        assert fetch.left == 0


def test_a_full_disk_is_said_and_what_came_is_kept(fetch: Download):
    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    program = (
        "import sys\nfrom pathlib import Path\n"
        "from tests.catalog.test_downloads import Download\n"
        "from tests.catalog.servers.faults import FaultServer\n"
        "class Far:\n    def url(self, path): return sys.argv[1] + path\n"
        "Download(Far(), Path(sys.argv[2]))(sha256=sys.argv[3])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, fetch.server.url(""), str(fetch.folder), SHA256],
        check=False,
        capture_output=True,
        text=True,
        preexec_fn=fill,
    )
    assert "StorageFullError: no room left to write" in ended.stderr
    assert fetch.left == 100_000
    assert fetch(sha256=SHA256) == CONTENT
