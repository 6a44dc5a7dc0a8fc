"""The Hub's own client library, in a process of its own: run by its path, knows nothing of us.

The library reads its settings when it is imported, keeps one HTTP client for the whole process
and waits as long as a server tells it to. Here all that binds nobody else: the settings are
those of the call, the memory is bounded, and whoever waits for it may end it.

Talks in lines of JSON. The first line of stdin has the endpoint and the token, which is thus no
part of a command line or an environment. Each line after it asks for one thing: `do` names a
method of `Client`, the rest are its arguments. On stdout follow any number of
`{"bytes": number}`, each followed by so many bytes, and of `{"restart": true}`, which takes them
back; at last `{"done": answer}` or `{"failed": kind, ...}`.
"""

import io
import json
import os
import queue
import resource
import sys
import threading
from collections.abc import Callable
from importlib import metadata
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import (
    HfApi,
    constants,
    errors,
    get_hf_file_metadata,
    get_session,
    hf_hub_url,
    set_client_factory,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented, without __all__
    build_hf_headers,
    hf_raise_for_status,
)
from typing_extensions import override

MEMORY_BYTES = 1 << 29  # a list of 100,000 files takes half of it
CHUNK_BYTES = 1 << 20
_PORTS = {"http": 80, "https": 443}


def say(**message: object) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def origin(url: str) -> tuple[str, str, int | None]:
    """Return whom an address belongs to: scheme, host and port."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme)


def own_version() -> str:
    """Tell the version of the program, which the Hub is told."""
    try:
        return metadata.version("hyprstream")
    except metadata.PackageNotFoundError:  # run from its source
        return "source"


class TooLongError(Exception):
    """Report content that goes on after the end that was announced."""


class Pipe(io.RawIOBase):
    """What the library takes for a file: its content goes to whoever asked, never to a disk."""

    def __init__(self, *, offset: int, limit: int) -> None:
        self._offset = offset
        self._limit = limit

    @override
    def write(self, data: Any) -> int:
        """Hand on a piece; ends what goes on after its end."""
        if self._offset + len(data) > self._limit:
            raise TooLongError
        say(bytes=len(data))
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        self._offset += len(data)
        return len(data)

    @override
    def tell(self) -> int:
        """Return how much there is."""
        return self._offset

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go back to the beginning, the only place that the library goes back to."""
        assert (offset, whence) == (0, io.SEEK_SET)
        return 0

    @override
    def truncate(self, size: int | None = None) -> int:
        """Take all back: the server sends the content from its beginning."""
        say(restart=True)
        self._offset = 0
        return 0


class Client:
    """The calls that are made of the library.

    Args:
        endpoint: Where the Hub is.
        token: Shown to the Hub, and to nobody else; None shows nothing.
    """

    def __init__(self, endpoint: str, token: str | None) -> None:
        hub = origin(endpoint)

        def keep_token(request: httpx2.Request) -> None:
            """Take the token from a request that goes elsewhere: a redirect, a next page."""
            if origin(str(request.url)) != hub:
                request.headers.pop("authorization", None)

        def connect() -> httpx2.Client:
            return httpx2.Client(
                event_hooks={"request": [keep_token]},
                follow_redirects=True,
                timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            )

        set_client_factory(connect)
        constants.DOWNLOAD_CHUNK_SIZE = CHUNK_BYTES  # 10 MiB would be silent for long
        self._endpoint = endpoint
        self._token: str | bool = token or False
        self._timeout_s = constants.HF_HUB_DOWNLOAD_TIMEOUT
        self._version = own_version()
        self._api = HfApi(
            endpoint=endpoint,
            token=self._token,
            library_name="hyprstream",
            library_version=self._version,
        )

    def model(self, name: str, revision: str | None) -> dict[str, Any]:
        """Describe one revision of a model, with every file of it."""
        info = self._api.model_info(
            name, revision=revision, files_metadata=True, timeout=self._timeout_s
        )
        return {
            "commit": info.sha,
            "license": getattr(info.card_data, "license", None),
            "files": [
                {
                    "name": file.rfilename,
                    "size_bytes": file.size if file.lfs is None else file.lfs.size,
                    "sha256": None if file.lfs is None else file.lfs.sha256,
                    "git_sha1": file.blob_id if file.lfs is None else None,
                }
                for file in info.siblings or ()
            ],
        }

    def download(self, name: str, commit: str, file: str, offset: int, size_bytes: int) -> None:
        """Bring a file, from an offset on."""
        url = hf_hub_url(name, file, revision=commit, endpoint=self._endpoint)
        about = get_hf_file_metadata(
            url,
            token=self._token,
            endpoint=self._endpoint,
            retry_on_errors=True,
            library_name="hyprstream",
            library_version=self._version,
        )
        headers = self._headers()
        headers["accept-encoding"] = "identity"  # packed content cannot be resumed
        http_get(
            about.location,
            cast("BinaryIO", Pipe(offset=offset, limit=size_bytes)),
            resume_size=offset,
            headers=headers,
            expected_size=size_bytes,
        )

    def search(self, query: str, limit: int) -> list[dict[str, Any]]:
        """List models whose names fit, those that were fetched most often first."""
        # HfApi.list_models would try six times before it says that there is no network.
        found = self._get("/api/models", search=query, limit=limit, sort="downloads", full=True)
        return [
            {
                "name": model.get("id"),
                "downloads": model.get("downloads"),
                "gated": bool(model.get("gated")),
                "task": model.get("pipeline_tag"),
                "tags": model.get("tags") or [],
                "updated": model.get("lastModified"),
            }
            for model in found
        ]

    def ping(self) -> None:
        """Ask for anything, to see whether the Hub answers."""
        self._get("/api/models", limit=1)

    def whoami(self) -> str:
        """Name the account that the token belongs to."""
        name: str = self._api.whoami()["name"]
        return name

    def _headers(self) -> dict[str, str]:
        headers: dict[str, str] = build_hf_headers(
            token=self._token, library_name="hyprstream", library_version=self._version
        )
        return headers

    def _get(self, path: str, **query: str | int | bool) -> Any:
        address = self._endpoint + path
        response = get_session().get(address, params=query, headers=self._headers())
        hf_raise_for_status(response)
        return response.json()


def failure(error: BaseException) -> dict[str, Any]:
    """Say what an error of the library means, in one word, and what the server said."""
    kinds: list[tuple[type[BaseException], str]] = [
        (errors.GatedRepoError, "gated"),
        (errors.RepositoryNotFoundError, "no model"),
        (errors.RevisionNotFoundError, "no revision"),
        (errors.EntryNotFoundError, "no file"),
        (errors.HfHubHTTPError, "status"),
        (httpx2.TransportError, "unreachable"),
        (TooLongError, "too long"),
        (errors.FileMetadataError, "strange"),
    ]
    kind = next((word for known, word in kinds if isinstance(error, known)), "")
    response = getattr(error, "response", None)
    if not kind and isinstance(error, OSError) and error.errno is None:
        kind = "too short"  # the library's own check
    waiting = response.headers.get("retry-after", "") if response is not None else ""
    return {
        "failed": kind or "strange",
        "status": response.status_code if response is not None else None,
        "retry_after_s": float(waiting) if waiting.isdecimal() else None,
        "reason": (getattr(error, "server_message", None) or str(error) or type(error).__name__)[
            :500
        ],
    }


def listen(requests: "queue.SimpleQueue[dict[str, Any]]") -> None:
    """Take in requests; end the process, whatever it is doing, when nobody can ask any more."""
    for line in sys.stdin:
        requests.put(json.loads(line))
    os._exit(0)


def serve() -> None:
    """Answer requests, one after the other."""
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=listen, args=(requests,), daemon=True).start()
    client = Client(**requests.get())
    while True:
        request = requests.get()
        try:
            method: Callable[..., object] = getattr(client, request.pop("do"))
            say(done=method(**request))
        except Exception as error:  # noqa: BLE001 - goes to whoever asked
            say(**failure(error))


def limit_memory() -> None:
    """Let an answer without an end be a `MemoryError` here, and not the end of the machine."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_BYTES if most == resource.RLIM_INFINITY else min(MEMORY_BYTES, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))


if __name__ == "__main__":
    limit_memory()
    serve()
