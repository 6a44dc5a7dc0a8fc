"""A server that runs, as a client sees it: found by the home that it learns in, or by its URL.

No torch. Answers are read up to a bound, redirections are not followed, and the key goes to
the named server alone.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx

from hyprstream.errors import (
    AccessError,
    ConflictError,
    HyprstreamError,
    InvalidRequestError,
    InvalidSettingsError,
    NotFoundError,
    UnavailableError,
)
from hyprstream.files import is_locked, storage, write_atomic
from hyprstream.refs import adapter_name, is_loopback
from hyprstream.runtime.settings import Settings

_TIMEOUT_S = 30.0
_MAX_ANSWER_BYTES = 16 << 20
_MAX_MARK_BYTES = 4096
_KINDS: Mapping[int, type[HyprstreamError]] = {
    400: InvalidRequestError,
    401: AccessError,
    403: AccessError,
    404: NotFoundError,
    409: ConflictError,
}


@contextmanager
def marked(settings: Settings, url: str) -> Iterator[None]:
    """Let commands of this home find the server that learns here, in a `with` block."""
    file = settings.server_file
    with storage(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"url": url, "pid": os.getpid()}).encode()
        write_atomic(file, content, scratch=file.parent)
    try:
        yield
    finally:
        with storage(file.parent):
            file.unlink(missing_ok=True)


def is_learning(settings: Settings) -> bool:
    """Tell whether a process learns in a home."""
    return is_locked(settings.journal_file.with_suffix(".lock"))


def found_server(settings: Settings) -> str | None:
    """Return the URL of the server that learns in a home; None if no process does, or no server.

    What a killed server left behind is not believed: nobody holds its journal any more.
    """
    if not is_learning(settings):
        return None
    try:
        with settings.server_file.open("rb") as stream:
            url = json.loads(stream.read(_MAX_MARK_BYTES))["url"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    parts = urlsplit(url) if isinstance(url, str) else None
    # A key is sent there: the file is taken at its word for this machine alone.
    if parts is None or parts.scheme not in ("http", "https") or not is_loopback(parts.netloc):
        return None
    return str(url)


class RemoteServer:
    """Calls of one server. A context manager.

    Args:
        url: As `hyprstream server` prints it.
        key: A key of it; empty where it needs none.
        transport: Instead of the network, in tests.
    """

    def __init__(
        self, url: str, key: str = "", *, transport: httpx.BaseTransport | None = None
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidSettingsError(
                f"{url[:200]!r} is no URL of a server", hint="Write it as http://127.0.0.1:8080."
            )
        if key and parts.scheme == "http" and not is_loopback(parts.netloc):
            raise InvalidSettingsError(
                "the key would be sent through the network unencrypted",
                hint="Use https, or a tunnel to this machine.",
            )
        self.url = f"{parts.scheme}://{parts.netloc}"
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=_TIMEOUT_S,
            trust_env=False,
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def status(self, name: str) -> dict[str, Any]:
        """Tell how the learning of an adapter stands; errors as in `stop_learning`."""
        return self._call("GET", f"/v1/training/{_place(name)}/status")

    def stop_learning(self, name: str) -> dict[str, Any]:
        """Let an adapter learn no more; return how its learning stands.

        Raises:
            UnavailableError: The server cannot be reached.
            AccessError: It wants a key, or another one.
            HyprstreamError: It refuses for another reason.
        """
        return self._call("POST", f"/v1/training/{_place(name)}/stop")

    def erase(self, user: str, key: str) -> dict[str, Any]:
        """Delete the samples of somebody; errors as in `stop_learning`."""
        named = {name: value for name, value in (("user", user), ("key", key)) if value}
        return self._call("DELETE", "/v1/samples", params=named)

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            with self._client.stream(method, path, **options) as answer:
                content = bytearray()
                for piece in answer.iter_bytes():
                    content += piece
                    if len(content) > _MAX_ANSWER_BYTES:
                        raise UnavailableError(
                            f"{self.url} answers without an end", hint="Look whether it is one."
                        )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UnavailableError(
                f"{self.url} cannot be reached: {type(error).__name__}",
                hint="Look whether the server runs, and name it with --url.",
            ) from error
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            found = None
        if answer.is_success and isinstance(found, dict):
            return found
        raise self._refusal(answer.status_code, found)

    def _refusal(self, status: int, found: object) -> HyprstreamError:
        error = found.get("error") if isinstance(found, dict) else None
        said = error.get("message") if isinstance(error, dict) else None
        message = f"{self.url} answers {status}"
        if isinstance(said, str):
            message += f": {''.join(c for c in said[:500] if c.isprintable())}"
        hint = ""
        if status in (401, 403):
            hint = "Set HYPRSTREAM_API_KEY to a key of the server with the scope admin."
        return _KINDS.get(status, UnavailableError)(message, hint=hint)


def _place(name: str) -> str:
    return quote(adapter_name(name))
