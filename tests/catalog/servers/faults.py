"""A web server on loopback that does on request what servers, proxies and networks do wrong.

    with serving(FaultServer()) as server:
        server.put("/m/tiny.gguf", content, etag='"1"')
        server.fail("/m/tiny.gguf", Fault(cut_at=1000), times=2)
        ... server.url("/m/tiny.gguf") ...
        assert server.sent_bytes("/m/tiny.gguf") < 2 * len(content)

Ranges, If-Range, ETag and HEAD are answered as RFC 9110 wants it, unless a fault says otherwise.
A registry's server is a subclass that overrides `find`, where it makes answers of its own.
"""

import json
import re
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, TypeVar
from urllib.parse import urlsplit

from typing_extensions import override

_PIECE_BYTES = 1 << 14  # of a body; of a very slow one, what comes in a tenth of a second
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """What a path has: an answer without faults."""

    content: bytes
    etag: str | None = None
    last_modified: str | None = None
    kind: str = "application/octet-stream"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_json(cls, value: object, **headers: str) -> "Resource":
        """Answer with a value as JSON."""
        content = json.dumps(value).encode()
        return cls(content=content, kind="application/json", headers=headers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong with one answer; the numbers count bytes of its body.

    Attributes:
        status: This status instead of the content, with `body` and `headers`.
        headers: Sent besides the usual ones, or in place of them; an empty value leaves one out.
        body: Sent instead of the content, or of the part of it that was asked for.
        cut_at: The connection ends there, in an orderly way.
        reset_at: The connection is reset there.
        stall_at: Nothing more comes from there on, until the server ends or `go_on` is called.
        bytes_per_s: How fast the body comes.
        length: The Content-Length that is claimed, -1 for none.
        content_range: The Content-Range that is claimed.
        ignores_range: The whole content is sent, with 200, whatever part was asked for.
        silent: The connection is closed without an answer.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    cut_at: int | None = None
    reset_at: int | None = None
    stall_at: int | None = None
    bytes_per_s: int | None = None
    length: int | None = None
    content_range: str | None = None
    ignores_range: bool = False
    silent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A request as it arrived; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]

    @property
    def token(self) -> str | None:
        """What stands behind `Bearer`."""
        kind, _, token = self.headers.get("authorization", "").partition(" ")
        return token if kind == "Bearer" else None


class FaultServer(ThreadingHTTPServer):
    """Serves what was put, with the faults that were asked for; remembers what it was asked.

    Attributes:
        seen: All requests, in order.
        tokens: Path prefix -> the token without which its paths are answered with 401.
        forbidden: Tokens that are known and not let in: answered with 403.
        challenge: The WWW-Authenticate header of a 401.
        num_connections: How many were made.
    """

    daemon_threads = True
    block_on_close = False  # a stalled answer does not hold up the end
    request_queue_size = 64

    def __init__(self, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        super().__init__(address, _Handler)
        self.seen: list[Seen] = []
        self.tokens: dict[str, str] = {}
        self.forbidden: set[str] = set()
        self.challenge = "Bearer"
        self.num_connections = 0
        self._resources: dict[str, Resource] = {}
        self._faults: dict[str, list[list[Any]]] = defaultdict(list)
        self._sent_bytes: dict[str, int] = defaultdict(int)
        self._lock = threading.Lock()
        self._going_on = threading.Event()

    @property
    def host(self) -> str:
        """The host with its port."""
        return f"{self.server_address[0]!s}:{self.server_port}"

    def url(self, path: str) -> str:
        """The address of a path."""
        return f"http://{self.host}{path}"

    def put(self, path: str, content: bytes, **more: Any) -> None:
        """Serve a content; `more` are fields of `Resource`."""
        self._resources[path] = Resource(content=content, **more)

    def redirect(self, path: str, location: str, status: int = 302) -> None:
        """Lead a path to another address."""
        self.put(path, b"", status=status, headers={"Location": location})

    def fail(self, path: str, fault: Fault, *, times: int = 1 << 30) -> None:
        """Let the next answers of a path fail; those of an earlier call come first."""
        with self._lock:
            self._faults[path].append([fault, times])

    def heal(self) -> None:
        """Forget all faults."""
        with self._lock:
            self._faults.clear()

    def go_on(self) -> None:
        """Let answers that stalled continue, and those to come not stall."""
        self._going_on.set()

    def find(self, request: Seen) -> Resource | None:
        """Answer a request without faults; None is a 404."""
        return self._resources.get(request.path)

    def requests(self, path: str) -> list[Seen]:
        """What a path was asked for."""
        return [seen for seen in self.seen if seen.path == path]

    def sent_bytes(self, path: str | None = None) -> int:
        """How many bytes of bodies were sent, of one path or of all."""
        with self._lock:
            return sum(self._sent_bytes.values()) if path is None else self._sent_bytes[path]

    def answer(self, request: Seen) -> Resource | None:
        """Answer a request, where a token is wanted only with that."""
        for prefix, token in self.tokens.items():
            if request.path.startswith(prefix) and request.token != token:
                if request.token in self.forbidden:
                    return Resource(content=b"not for you", status=403)
                challenge = {"WWW-Authenticate": self.challenge}
                return Resource(content=b"who are you?", status=401, headers=challenge)
        return self.find(request)

    def take_fault(self, path: str) -> Fault:
        """Take the next fault of a path; one without any effect if there is none."""
        with self._lock:
            waiting = self._faults[path]
            while waiting and waiting[0][1] == 0:
                waiting.pop(0)
            if not waiting:
                return Fault()
            waiting[0][1] -= 1
            fault: Fault = waiting[0][0]
            return fault

    def count(self, path: str, num_bytes: int) -> None:
        """Remember that so many bytes were sent."""
        with self._lock:
            self._sent_bytes[path] += num_bytes

    def stall(self) -> None:
        """Wait until the server ends or is told to go on."""
        self._going_on.wait()

    @override
    def get_request(self) -> tuple[Any, Any]:
        self.num_connections += 1
        return super().get_request()

    @override
    def server_close(self) -> None:
        self._going_on.set()
        super().server_close()

    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that go away are what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: FaultServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 0

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Seen(method=self.command, path=self.path, headers=headers)
        self.server.seen.append(request)
        fault = self.server.take_fault(self.path)
        if fault.silent:
            self.close_connection = True
            return
        if fault.status is not None:
            resource: Resource | None = Resource(content=fault.body or b"", status=fault.status)
        else:
            resource = self.server.answer(request)
        self._send(request, resource or Resource(content=b"not found", status=404), fault)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def _send(self, request: Seen, resource: Resource, fault: Fault) -> None:
        start, stop = self._part(request, resource, fault)
        body = resource.content[start:stop] if fault.body is None else fault.body
        status, whole = resource.status, len(resource.content)
        headers = {"Content-Type": resource.kind, "Accept-Ranges": "bytes"}
        if start > whole or (start, stop) == (whole, whole) != (0, 0):
            status, body = 416, b""
            headers["Content-Range"] = f"bytes */{whole}"
        elif (start, stop) != (0, whole):
            status = 206
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{whole}"
        if fault.content_range is not None:
            headers["Content-Range"] = fault.content_range
        if resource.etag:
            headers["ETag"] = resource.etag
        if resource.last_modified:
            headers["Last-Modified"] = resource.last_modified
        headers["Content-Length"] = str(len(body) if fault.length is None else fault.length)
        if fault.length == -1:
            headers |= {"Content-Length": "", "Connection": "close"}
        self._head(status, {**headers, **resource.headers, **fault.headers})
        if request.method != "HEAD":
            self._body(body, fault)
        if fault.length is not None:
            self.close_connection = True

    def _part(self, request: Seen, resource: Resource, fault: Fault) -> tuple[int, int]:
        whole = len(resource.content)
        match = _RANGE.fullmatch(request.headers.get("range", ""))
        condition = request.headers.get("if-range")
        is_same = condition in (None, resource.etag or object(), resource.last_modified or object())
        if not match or not is_same or fault.ignores_range or resource.status != 200:
            return 0, whole
        return int(match[1]), min(whole, int(match[2] or whole) + bool(match[2]))

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()

    def _body(self, body: bytes, fault: Fault) -> None:
        ends = [end for end in (fault.cut_at, fault.reset_at, fault.stall_at) if end is not None]
        end = min([*ends, len(body)])
        piece_bytes = min(_PIECE_BYTES, max(1, (fault.bytes_per_s or _PIECE_BYTES * 10) // 10))
        for start in range(0, end, piece_bytes):
            piece = body[start : min(end, start + piece_bytes)]
            self.wfile.write(piece)
            self.server.count(self.path, len(piece))
            if fault.bytes_per_s:
                time.sleep(len(piece) / fault.bytes_per_s)
        if fault.stall_at == end:
            self.server.stall()
            self._body(body[end:], Fault())
        elif ends:
            self.close_connection = True
            if fault.reset_at == end:
                self._reset()

    def _reset(self) -> None:
        """Let the connection end with RST, as a router does that forgot it."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        # The two files of the handler hold the socket too: this closes it whatever they do.
        fileno = self.connection.detach()
        socket.socket(fileno=fileno).close()

    @override
    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


class ProxyServer(FaultServer):
    """A proxy for http:// addresses: asks `upstream` and counts what passes."""

    def __init__(self, upstream: FaultServer) -> None:
        super().__init__()
        self._upstream = upstream

    @override
    def find(self, request: Seen) -> Resource | None:
        """Answer as the server behind would, where the whole address was asked for."""
        parts = urlsplit(request.path)
        if not parts.scheme:
            return None
        inner = Seen(method=request.method, path=parts.path, headers=request.headers)
        self._upstream.seen.append(inner)
        return self._upstream.answer(inner)


Server = TypeVar("Server", bound=TCPServer)


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Run a server in a thread of its own while the block lasts."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
