"""Pulls over HTTP: killed, shared between processes, and forbidden."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyprstream.catalog.cache import ModelCache
from hyprstream.catalog.catalog import Catalog
from tests.catalog.fakes import put
from tests.catalog.servers.faults import Fault, serving
from tests.catalog.servers.ollama import OllamaServer

REPOSITORY = Path(__file__).parent.parent.parent
MODEL = b"GGUF" + os.urandom(2_000_000)
BYTES_PER_S = 2_000_000

PULL = """
import json, sys
from pathlib import Path
from hyprstream.catalog.cache import ModelCache
from hyprstream.catalog.catalog import Catalog

catalog = Catalog(ModelCache(Path(sys.argv[1])), environ={}, custom=json.loads(sys.argv[2]))
print(catalog.pull(catalog.resolve(sys.argv[3])))
"""

# Ends the process at once if it touches a socket or starts another program.
OFFLINE = """
import os, sys
from hyprstream.errors import HyprstreamError, OfflineError
from hyprstream.runtime import load_settings, open_catalog

def guard(event, arguments):
    if event.startswith(("socket.", "subprocess.", "os.posix_spawn", "os.fork")):
        os.write(2, event.encode())
        os._exit(99)

catalog = open_catalog(load_settings())
sys.addaudithook(guard)
for text in sys.argv[1:]:
    try:
        catalog.pull(catalog.resolve(text))
        print("found")
    except OfflineError:
        print("offline")
for scheme in catalog.schemes:
    catalog.status(scheme)
    try:
        catalog.search(scheme, "tiny", limit=1)
    except HyprstreamError:
        pass
"""


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with serving(OllamaServer()) as server:
        layers = [("model", MODEL), ("template", b"x"), ("params", b"{}")]
        server.add("library/tiny", "8b", layers)
        server.add("library/tiny", "9b", [("model", MODEL), ("template", b"y")])
        server.put("/tiny.gguf", MODEL, etag='"1"')
        slow = Fault(bytes_per_s=BYTES_PER_S)
        server.fail(blob(server), slow)
        server.fail("/tiny.gguf", slow)
        yield server


def blob(server: OllamaServer) -> str:
    """Name the path of the weights."""
    return next(path for path, has in server._resources.items() if has.content == MODEL)


def custom(server: OllamaServer) -> str:
    """Write the registries that a process is to know as JSON."""
    return json.dumps({"acme": {"layout": "ollama", "url": server.url("")}})


def _kill(server: OllamaServer, root: Path, text: str, num_kills: int) -> list[int]:
    output = subprocess.check_output(
        [
            *(sys.executable, "-m", "tests.catalog.kill_pulls", str(root), custom(server), text),
            str(num_kills),
        ],
        cwd=REPOSITORY,
        text=True,
    )
    return [int(number) for number in output.split()]


@pytest.mark.parametrize(
    "num_kills", [10, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
@pytest.mark.parametrize("kind", ["promised", "unpromised"])
def test_pulls_that_are_killed_are_continued_and_never_wrong(
    server: OllamaServer, tmp_path: Path, kind: str, num_kills: int
):
    text = "acme://tiny:8b" if kind == "promised" else server.url("/tiny.gguf")
    num_partial, num_whole = _kill(server, tmp_path / "cache", text, num_kills)
    assert num_partial >= num_kills // 3
    # What is on its way when a process dies is lost, and asked for again.
    assert server.sent_bytes() <= (num_whole + 1) * len(MODEL) + num_kills * 200_000


@pytest.mark.parametrize("second", ["acme://tiny:8b", "acme://tiny:9b"], ids=["same", "shared"])
def test_two_processes_share_one_download(server: OllamaServer, tmp_path: Path, second: str):
    pulls = [
        subprocess.Popen(
            [sys.executable, "-c", PULL, str(tmp_path), custom(server), text],
            stdout=subprocess.PIPE,
            text=True,
        )
        for text in ("acme://tiny:8b", second)
    ]
    for pull in pulls:
        with pull:
            output, _ = pull.communicate()
            assert Path(output.strip()).read_bytes() == MODEL
    assert server.sent_bytes(blob(server)) == len(MODEL)
    blobs = list(tmp_path.glob("blobs/sha256/*"))
    assert sum(file.read_bytes() == MODEL for file in blobs) == 1
    assert list(tmp_path.glob("partial/*")) == []


def test_offline_touches_no_socket(tmp_path: Path):
    put(ModelCache(tmp_path / "cache"), {"config.json": b"{}"}, name="here")
    texts = [
        "pypi://here",
        "pypi://there",
        "https://example.org/tiny.gguf",
        "http://127.0.0.1:9/tiny.gguf",
        "ollama://tiny",
    ]
    output = subprocess.check_output(
        [sys.executable, "-c", OFFLINE, *texts],
        env={
            **os.environ,
            "HYPRSTREAM_OFFLINE": "1",
            "HYPRSTREAM_KEYRING": "false",  # that library asks the linker for others
            "HYPRSTREAM_HOME": str(tmp_path),
            "HYPRSTREAM_CONFIG": str(tmp_path / "none.toml"),
        },
        text=True,
    )
    assert output.split() == ["found", "offline", "offline", "offline", "offline"]


def test_an_old_download_is_collected_and_a_young_one_is_not(server: OllamaServer, tmp_path: Path):
    server.heal()
    server.fail("/tiny.gguf", Fault(stall_at=100_000))
    catalog = Catalog(ModelCache(tmp_path), environ={})
    with subprocess.Popen(
        [sys.executable, "-c", PULL, str(tmp_path), "{}", server.url("/tiny.gguf")]
    ) as pull:
        while sum(file.stat().st_size for file in tmp_path.glob("partial/*.content")) < 100_000:
            assert pull.poll() is None
        server.put("/other.gguf", b"GGUF", etag='"1"')
        catalog.pull(catalog.resolve(server.url("/other.gguf")))
        (content,) = tmp_path.glob("partial/*.content")
        os.utime(content, (0, 0))
        catalog.pull(catalog.resolve(server.url("/other.gguf")), force=True)
        assert content.exists()  # it is in use
        pull.kill()
    catalog.pull(catalog.resolve(server.url("/other.gguf")), force=True)
    assert list(tmp_path.glob("partial/*")) == []
