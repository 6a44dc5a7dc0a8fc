"""A Hub and its CDN on loopback: real HTTP as the client library speaks it, and what goes wrong.

Small files come from the Hub itself, large (LFS) ones from the CDN, a server on another port
that the Hub redirects to. Faults are injected by path.
"""

import gzip
import hashlib
import json
import queue
import re
import socket
import struct
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from typing_extensions import override

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "fedcba9876543210fedcba9876543210fedcba98"


def git_sha1(content: bytes) -> str:
    """Hash a file as git does."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Fault:
    """What happens to the answers to one path.

    Attributes:
        status: Answered instead of the content.
        headers: Sent with it.
        cut_at: The connection ends after so many bytes of content.
        reset: It ends with a TCP reset.
        content: Sent instead of the true content, its length announced truly.
        announced: The length that is announced, if it is not that.
        endless: Bytes follow until the client hangs up.
        packed: The content comes compressed.
        no_ranges: All of it comes, whatever part was asked for.
        hold: The answer waits for this.
        times: For how many answers; None for all.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_at: int | None = None
    reset: bool = False
    content: bytes | None = None
    announced: int | None = None
    endless: bool = False
    packed: bool = False
    no_ranges: bool = False
    hold: threading.Event | None = None
    times: int | None = None


@dataclass
class Repo:
    """One model on the Hub.

    Attributes:
        files: Commit -> file name -> content.
        refs: Branch or tag -> commit.
        lfs: Endings of the names of files that lie on the CDN.
        gated: Files are only for those who accepted its conditions.
        private: Only for those who are logged in.
        promised: File name -> what the API says about it, where it is not the truth.
        card: Metadata of the model card.
    """

    files: dict[str, dict[str, bytes]]
    refs: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    lfs: tuple[str, ...] = (".safetensors", ".gguf", ".bin")
    gated: bool = False
    private: bool = False
    promised: dict[str, dict[str, Any]] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """A request as it came in."""

    server: str
    method: str
    path: str
    headers: Mapping[str, str]


class Server(ThreadingHTTPServer):
    """What Hub and CDN share: they answer, remember and misbehave.

    Attributes:
        name: `hub` or `cdn`.
        hub: The Hub that it belongs to.
        answering: Requests are answered only while this is set.
    """

    daemon_threads = True

    def __init__(self, name: str, hub: "Hub | None") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name = name
        self.hub = hub or self
        self.answering = threading.Event()
        self.answering.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients hang up, that is what the tests are about."""


class Hub(Server):
    """Serves models.

    Attributes:
        repos: By id.
        tokens: Token -> name of its owner.
        accepted: Owners who accepted the conditions of gated models.
        faults: Regular expression for a path -> what happens there.
        seen: Every request, in order.
        asked: The path of every request for a file's content, as it arrives.
        arrived: Set when the first request arrives.
        cdn: The other server.
    """

    def __init__(self) -> None:
        super().__init__("hub", None)
        self.repos: dict[str, Repo] = {}
        self.tokens: dict[str, str] = {}
        self.accepted: set[str] = set()
        self.faults: dict[str, Fault] = {}
        self.seen: list[Seen] = []
        self.asked: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.arrived = threading.Event()
        self.cdn = Server("cdn", self)

    def add(self, name: str, files: Mapping[str, bytes], **features: Any) -> Repo:
        """Publish a model with one commit."""
        self.repos[name] = Repo(files={COMMIT: dict(files)}, **features)
        return self.repos[name]

    def requests(self, method: str, pattern: str) -> list[Seen]:
        """List the requests of a method whose path fits."""
        return [r for r in self.seen if r.method == method and re.search(pattern, r.path)]

    def fault(self, path: str) -> Fault:
        for pattern, fault in self.faults.items():
            if re.search(pattern, path) and fault.times != 0:
                if fault.times is not None:
                    self.faults[pattern] = Fault(**{**vars(fault), "times": fault.times - 1})
                return fault
        return Fault()


def _promises(repo: Repo, file: str, content: bytes, git: str, lfs: str) -> dict[str, Any]:
    """Say what the API says of a file; two pages of it name the hashes differently."""
    entry: dict[str, Any] = {"size": len(content), git: git_sha1(content)}
    if file.endswith(repo.lfs):
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {lfs: digest, "size": len(content), "pointerSize": 130}
    return {**entry, **repo.promised.get(file, {})}


class _RefusedError(Exception):
    def __init__(self, status: int, code: str | None, message: str) -> None:
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        hub = self.server.hub
        assert isinstance(hub, Hub)
        self._hub = hub
        hub.seen.append(Seen(self.server.name, self.command, self.path, dict(self.headers)))
        hub.arrived.set()
        url = urllib.parse.urlsplit(self.path)
        if self.command == "GET" and re.search("resolve|/lfs/", url.path):
            hub.asked.put(url.path)
        self.server.answering.wait()
        self._fault = hub.fault(self.path)
        if self._fault.hold is not None:
            self._fault.hold.wait()
        if self._fault.status != 200:
            body = (
                b'{"error": "as injected"}' if self._fault.content is None else self._fault.content
            )
            self._send(self._fault.status, body, self._fault.headers)
            return
        try:
            self._route(urllib.parse.unquote(url.path), dict(urllib.parse.parse_qsl(url.query)))
        except _RefusedError as refusal:
            headers = {"X-Error-Message": refusal.message}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            body = json.dumps({"error": refusal.message}).encode()
            self._send(refusal.status, body, {**headers, "Content-Type": "application/json"})

    def _route(self, path: str, query: Mapping[str, str]) -> None:
        if self.server.name == "cdn":
            _, _, name, commit, file = path.split("/", 4)
            content = self._hub.repos[name.replace("--", "/")].files[commit][file]
            self._content(content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'})
        elif path == "/api/whoami-v2":
            self._json({"type": "user", "name": self._require_owner(), "orgs": []})
        elif path == "/api/models":
            self._search(query)
        elif match := re.fullmatch(r"/api/models/(.+?)/tree/([^/]+)", path):
            self._tree(match[1], match[2])
        elif match := re.fullmatch(r"/api/models/(.+?)(?:/revision/(.+))?", path):
            self._info(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[2], match[3])
        elif match := re.fullmatch(r"/api/resolve-cache/models/(.+?)/([0-9a-f]{40})/(.+)", path):
            content = self._repo(match[1]).files[match[2]][match[3]]
            headers = {"X-Repo-Commit": match[2], "ETag": f'"{git_sha1(content)}"'}
            self._content(content, headers)
        else:
            raise _RefusedError(404, None, "Sorry, we can't find the page you are looking for.")

    def _search(self, query: Mapping[str, str]) -> None:
        found = [
            {
                "id": name,
                "downloads": 10 * index,
                "likes": index,
                "pipeline_tag": "text-generation",
                "tags": ["gguf"] if any(f.endswith(".gguf") for f in repo.files[COMMIT]) else [],
                "gated": "manual" if repo.gated else False,
                "private": repo.private,
                "lastModified": "2026-01-02T03:04:05.000Z",
            }
            for index, (name, repo) in enumerate(self._hub.repos.items())
            if query.get("search", "").lower() in name.lower()
        ]
        self._json(found[: int(query.get("limit", 100))])

    def _info(self, name: str, revision: str) -> None:
        repo = self._repo(name)
        commit = self._commit(repo, revision)
        siblings = [
            {"rfilename": file, **_promises(repo, file, content, "blobId", "sha256")}
            for file, content in repo.files[commit].items()
        ]
        self._json(
            {
                "id": name,
                "sha": commit,
                "private": repo.private,
                "gated": "manual" if repo.gated else False,
                "cardData": repo.card,
                "tags": [],
                "siblings": siblings,
            }
        )

    def _tree(self, name: str, revision: str) -> None:
        repo = self._repo(name)
        files = repo.files[self._commit(repo, revision)]
        self._json(
            [
                {"type": "file", "path": file, **_promises(repo, file, content, "oid", "oid")}
                for file, content in files.items()
            ]
        )

    def _resolve(self, name: str, revision: str, file: str) -> None:
        repo = self._repo(name)
        if repo.gated:
            owner = self._owner()
            if owner is None:
                raise _RefusedError(401, "GatedRepo", f"Access to model {name} is restricted.")
            if owner not in self._hub.accepted:
                raise _RefusedError(
                    403, "GatedRepo", f"Visit {self._hub.url}/{name} to ask for access."
                )
        commit = self._commit(repo, revision)
        content = repo.files[commit].get(file)
        if content is None:
            raise _RefusedError(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit}
        if file.endswith(repo.lfs):
            path = f"/lfs/{name.replace('/', '--')}/{commit}/{file}"
            headers |= {
                "Location": f"{self._hub.cdn.url}{path}?signature=abc",
                "X-Linked-Size": str(len(content)),
                "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
            }
            self._send(302, b"", headers)
        else:
            path = f"/api/resolve-cache/models/{name}/{commit}/{urllib.parse.quote(file)}"
            self._send(307, b"", {**headers, "Location": path, "ETag": f'"{git_sha1(content)}"'})

    def _owner(self) -> str | None:
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        if kind and (kind != "Bearer" or token not in self._hub.tokens):
            raise _RefusedError(401, None, "Invalid credentials in Authorization header")
        return self._hub.tokens.get(token)

    def _require_owner(self) -> str:
        owner = self._owner()
        if owner is None:
            raise _RefusedError(401, None, "Invalid username or password.")
        return owner

    def _repo(self, name: str) -> Repo:
        owner = self._owner()
        repo = self._hub.repos.get(name)
        if repo is not None and (owner or not repo.private):
            return repo
        if owner is None:  # the Hub does not say which names are taken
            raise _RefusedError(401, "RepoNotFound", "Invalid username or password.")
        raise _RefusedError(404, "RepoNotFound", "Repository not found")

    def _commit(self, repo: Repo, revision: str) -> str:
        commit = repo.refs.get(revision, revision)
        if commit not in repo.files:
            raise _RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _json(self, value: object) -> None:
        self._content(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _content(self, content: bytes, headers: Mapping[str, str]) -> None:
        fault = self._fault
        content = content if fault.content is None else fault.content
        start = 0
        wanted = "" if fault.no_ranges else self.headers.get("Range", "")
        if match := re.fullmatch(r"bytes=(\d+)-", wanted):
            start = int(match[1])
            if start >= len(content):
                self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                return
            headers = {
                **headers,
                "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}",
            }
        if fault.packed:
            content, headers = gzip.compress(content), {**headers, "Content-Encoding": "gzip"}
        self._send(206 if start else 200, content[start:], headers)

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        fault = self._fault
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        announced = len(content) if fault.announced is None else fault.announced
        if fault.endless:
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(announced))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(content[: fault.cut_at])
        while fault.endless:
            self.wfile.write(bytes(1 << 16))
        if fault.reset:
            option = struct.pack("ii", 1, 0)  # linger for no time: a reset instead of an end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
        if fault.reset or fault.cut_at is not None or fault.announced is not None:
            self.close_connection = True

    @override
    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@contextmanager
def _running(server: Server) -> Iterator[None]:
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield
        finally:
            server.answering.set()
            server.shutdown()
            thread.join()


@contextmanager
def hub_serving() -> Iterator[Hub]:
    """Run a Hub with its CDN."""
    hub = Hub()
    with _running(hub), _running(hub.cdn):
        yield hub
