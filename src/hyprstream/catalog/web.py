"""Asks servers of the web: where they may lead, whom they may ask who we are, how often we ask.

`Web` is one HTTP client with proxies, time limits, redirects and refusals; `Attempts` counts
failures and waits between them. Nothing here touches a file. A `Web` belongs to one thread.

A token is sent to the one origin that it is for, never to where that redirects to. A
redirect may not lead from https to http, nor from elsewhere to this machine; http is for
this machine only.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import uniform
from types import TracebackType

import httpx

from hyprstream.catalog.connection import Connection
from hyprstream.catalog.offer import RegistryState
from hyprstream.catalog.proxies import certificates, proxy_mounts
from hyprstream.catalog.refusals import refusal, transport_errors
from hyprstream.errors import (
    AccessError,
    ModelNotFoundError,
    OfflineError,
    RateLimitedError,
    RegistryAnswerError,
    RegistryUnreachableError,
)
from hyprstream.refs import is_loopback

log = logging.getLogger(__name__)

_MAX_REDIRECTS = 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_STALLS = 4  # a small document may take so many times as long as one wait for bytes
_SMALL_BYTES = 1 << 16  # a body of at most that is read, so that its connection can be used again
_DEFAULT_PORTS: Mapping[str, int] = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A token, and the only place that may see it.

    Attributes:
        token: Sent as `Authorization: Bearer`.
        origin: `https://host[:port]`.
    """

    token: str = field(repr=False)
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long and how often to wait.

    Attributes:
        connect_s: For a connection.
        stall_s: For the next bytes.
        max_failures: Failures in a row, without anything new in between, that end an attempt.
        first_wait_s: Before the second attempt; doubled before each further one.
        max_wait_s: The longest of these waits, and the longest that a server may ask for.
        sleep: Waits so many seconds.
    """

    connect_s: float = 10.0
    stall_s: float = 30.0
    max_failures: int = 4
    first_wait_s: float = 0.5
    max_wait_s: float = 60.0
    sleep: Callable[[float], None] = time.sleep


class Attempts:
    """Counts failures in a row and waits after each, until they are too many."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._num_failures = 0

    def progressed(self) -> None:
        """Begin to count anew: something new has come."""
        self._num_failures = 0

    def failed(self, error: RegistryUnreachableError | RateLimitedError) -> None:
        """Wait as long as the failure asks for, or raise it if it was the last one."""
        self._num_failures += 1
        patience = self._patience
        wait_s = error.retry_after_s if isinstance(error, RateLimitedError) else None
        if self._num_failures >= patience.max_failures or (wait_s or 0) > patience.max_wait_s:
            raise error
        if wait_s is None:
            wait_s = min(
                patience.first_wait_s * 2 ** (self._num_failures - 1), patience.max_wait_s
            ) * uniform(0.5, 1)  # noqa: S311 - spreads clients that failed together
        log.info("%s; trying again in %.1f s", error, wait_s)
        patience.sleep(wait_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A small document.

    Attributes:
        url: Where it was found, after redirects.
        headers: The answer's headers, their names in lower case.
        content: Its bytes.
    """

    url: str
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Whether a server answers.

    Attributes:
        state: As in `RegistryStatus`.
        problem: Why it is not ready.
    """

    state: RegistryState
    problem: str | None = None


class Web:
    """An HTTP client that holds to the rules above; a context manager."""

    def __init__(self, connection: Connection, patience: Patience | None = None) -> None:
        self.patience = patience or Patience()
        self._connection = connection
        self._client: httpx.Client | None = None

    def __enter__(self) -> "Web":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._client is not None:
            self._client.close()

    def get(
        self,
        url: str,
        *,
        what: str,
        max_bytes: int,
        credential: Credential | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Fetch a small document, trying again where that may help.

        Args:
            url: Its address.
            what: What it is, for messages.
            max_bytes: More than that is refused.
            credential: Sent along where it may be.
            headers: Sent along everywhere.

        Raises:
            RegistryUnreachableError: No answer, or one that says that the server is broken.
            RateLimitedError: The server wants to be left alone for longer than we wait.
            RegistryAnswerError: The answer makes no sense or is too long.
            AuthenticationError: The server asks for a token, or does not accept ours.
            ModelAccessDeniedError: The server does not let us have it.
            ModelNotFoundError: The server does not have it.
            OfflineError: The settings forbid the network.
        """
        attempts = Attempts(self.patience)
        while True:
            try:
                with self.stream(url, what=what, credential=credential, headers=headers) as answer:
                    content = self._read(answer, what, max_bytes)
                    return Answer(
                        url=str(answer.url), headers=dict(answer.headers), content=content
                    )
            except (RegistryUnreachableError, RateLimitedError) as error:
                attempts.failed(error)

    def probe(self, url: str, credential: Credential | None = None) -> Probe:
        """Find out whether a server answers and lets us in; what is wrong is the result."""
        try:
            self.get(url, what="what it offers", max_bytes=_SMALL_BYTES, credential=credential)
        except OfflineError as error:
            return Probe(state="offline", problem=str(error))
        except AccessError as error:
            return Probe(state="unauthorized", problem=str(error))
        except (RegistryUnreachableError, RateLimitedError) as error:
            return Probe(state="unreachable", problem=str(error))
        except (ModelNotFoundError, RegistryAnswerError) as error:
            log.debug("%s", error)  # it is there; what it says to this question is its affair
        return Probe(state="ready")

    @contextmanager
    def stream(
        self,
        url: str,
        *,
        what: str,
        credential: Credential | None = None,
        headers: Mapping[str, str] | None = None,
        accepted: Collection[int] = (200,),
    ) -> Iterator[httpx.Response]:
        """Ask once, following redirects; the answer's body is read within the block.

        Args:
            url: The address.
            what: What is there, for messages.
            credential: Sent along where it may be.
            headers: Sent along everywhere.
            accepted: The statuses that are no errors.

        Raises:
            RegistryUnreachableError: Also when the connection fails within the block.
            HyprstreamError: As `get`.
        """
        self._connection.require_network(f"fetching {what}")
        with transport_errors(httpx.URL(url).host, what):
            response = self._follow(url, what, credential, dict(headers or {}))
            try:
                if response.status_code not in accepted:
                    raise refusal(response, what)
                encoding = response.headers.get("Content-Encoding", "identity")
                if encoding != "identity":
                    raise RegistryAnswerError(
                        f"{response.url.host} sent {what} packed with {encoding[:20]!r}, unasked"
                    )
                yield response
            finally:
                response.close()

    def _follow(
        self, url: str, what: str, credential: Credential | None, headers: dict[str, str]
    ) -> httpx.Response:
        here = httpx.URL(url)
        _check_address(here, what)
        headers = {"Accept-Encoding": "identity", **headers}
        assert "authorization" not in map(str.lower, headers), "a token is given as a Credential"
        client = self._open()
        for _ in range(_MAX_REDIRECTS + 1):
            if credential is not None and origin_of(here) != credential.origin:
                credential = None  # and does not come back, wherever the redirects lead
            private = {"Authorization": f"Bearer {credential.token}"} if credential else {}
            request = client.build_request("GET", here, headers={**headers, **private})
            response = client.send(request, stream=True)
            if response.status_code not in _REDIRECTS:
                return response
            try:
                _finish(response)
                here = led_to(here, response.headers.get("Location", ""), what)
            finally:
                response.close()
        raise RegistryAnswerError(
            f"{httpx.URL(url).host} redirects more than {_MAX_REDIRECTS} times for {what}",
            hint="Report it to whoever runs that server.",
        )

    def _read(self, answer: httpx.Response, what: str, max_bytes: int) -> bytes:
        content, longest_s = bytearray(), _MOST_STALLS * self.patience.stall_s
        begun = time.monotonic()
        for chunk in answer.iter_raw():
            content += chunk
            if len(content) > max_bytes:
                raise RegistryAnswerError(
                    f"{answer.url.host} answers with more than {max_bytes:,} bytes for {what}"
                )
            if time.monotonic() - begun > longest_s:
                raise RegistryUnreachableError(
                    f"{answer.url.host} took more than {longest_s:.0f} s to answer for {what}",
                    hint="Try again later.",
                )
        return bytes(content)

    def _open(self) -> httpx.Client:
        if self._client is None:
            context = certificates(self._connection.environ)
            patience = self.patience
            self._client = httpx.Client(
                verify=context,
                mounts=proxy_mounts(self._connection.environ, context),
                trust_env=False,  # the connection's environment counts, not this process's
                follow_redirects=False,
                headers={"User-Agent": "hyprstream"},
                timeout=httpx.Timeout(patience.stall_s, connect=patience.connect_s),
            )
        return self._client


def origin_of(url: httpx.URL | str) -> str:
    """Name the place that an address belongs to: `scheme://host[:port]`."""
    url = httpx.URL(url)
    host = f"[{url.host}]" if ":" in url.host else url.host
    port = "" if url.port in (None, _DEFAULT_PORTS.get(url.scheme)) else f":{url.port}"
    return f"{url.scheme}://{host}{port}"


def led_to(here: httpx.URL, location: str, what: str) -> httpx.URL:
    """Find out where a server leads, and refuse where it must not.

    Args:
        here: The address that was asked.
        location: What its answer says.
        what: What was asked for, for messages.

    Raises:
        RegistryAnswerError: It leads from https to http, to this machine from elsewhere, to
            what is no address of the web, or names a user.
    """
    try:
        target = here.join(location).copy_with(fragment=None)
    except httpx.InvalidURL as error:
        raise RegistryAnswerError(f"{here.host} leads to no address for {what}: {error}") from error
    lowered = here.scheme == "https" and target.scheme != "https"
    if not location or lowered or (_is_here(target) and not _is_here(here)):
        raise RegistryAnswerError(
            f"{here.host} leads to {str(target)[:80]!r} for {what}, where it must not lead",
            hint="Report it to whoever runs that server.",
        )
    _check_address(target, what)
    return target


def _check_address(url: httpx.URL, what: str) -> None:
    if url.scheme not in _DEFAULT_PORTS or not url.host or url.userinfo:
        raise RegistryAnswerError(f"the address of {what} is not one of the web, or names a user")
    if url.scheme == "http" and not _is_here(url):
        raise RegistryAnswerError(
            f"{url.host} would be spoken to in clear for {what}",
            hint="http:// is for this machine only; use https://.",
        )


def _is_here(url: httpx.URL) -> bool:
    return is_loopback(f"[{url.host}]" if ":" in url.host else url.host)


def _finish(response: httpx.Response) -> None:
    """Read what little there is, so that the connection can be used again."""
    length = response.headers.get("Content-Length", "")
    if length.isdigit() and int(length) <= _SMALL_BYTES:
        response.read()
