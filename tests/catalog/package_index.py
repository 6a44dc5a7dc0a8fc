"""A package index on loopback: real HTTP, real pip, wheels built by the test (PEP 503)."""

import hashlib
import os
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from typing_extensions import override


class PackageIndex(ThreadingHTTPServer):
    """Serves the wheels of one folder.

    Attributes:
        folder: The wheels.
        status: Answered to every request for a project page.
        promised: File name -> SHA-256 that the index claims, where it is not the truth.
        requests: How often each path was asked for.
        asked: Set when the first request arrives.
        answering: Requests are answered only while this is set.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.status = 200
        self.promised: dict[str, str] = {}
        self.requests: Counter[str] = Counter()
        self.asked = threading.Event()
        self.answering = threading.Event()
        self.answering.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/simple"

    @property
    def num_downloads(self) -> int:
        return sum(n for path, n in self.requests.items() if path.endswith(".whl"))

    @property
    def environ(self) -> dict[str, str]:
        """The environment in which pip knows this index and no other."""
        return pip_environ(PIP_INDEX_URL=self.url)

    def page(self, project: str) -> str | None:
        links = []
        for wheel in sorted(self.folder.glob("*.whl")):
            if wheel.name.split("-")[0].replace("_", "-") == project:
                digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
                digest = self.promised.get(wheel.name, digest)
                links.append(f'<a href="/files/{wheel.name}#sha256={digest}">{wheel.name}</a>')
        return f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>" if links else None


class _Handler(BaseHTTPRequestHandler):
    server: PackageIndex

    def do_GET(self) -> None:
        self.server.requests[self.path] += 1
        self.server.asked.set()
        self.server.answering.wait()
        if match := re.fullmatch(r"/simple/([^/]+)/", self.path):
            page = self.server.page(match[1])
            status = self.server.status if self.server.status != 200 or page else 404
            self._answer(status, "text/html", (page or "").encode())
        else:
            content = (self.server.folder / Path(self.path).name).read_bytes()
            self._answer(200, "application/octet-stream", content)

    def _answer(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    @override
    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


def pip_environ(**settings: str) -> dict[str, str]:
    """This process's environment, with pip configured by `settings` alone."""
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PIP_") and not name.lower().endswith("_proxy")
    }
    return {
        **environ,
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_CACHE_DIR": "1",
        "PIP_RETRIES": "0",
        "PIP_TIMEOUT": "10",
        **settings,
    }


@contextmanager
def serving(folder: Path) -> Iterator[PackageIndex]:
    with PackageIndex(folder) as index:
        thread = threading.Thread(target=index.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield index
        finally:
            index.shutdown()
            thread.join()
