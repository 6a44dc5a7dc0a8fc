"""Who calls: keys in headers, sessions by token or cookie.

The keys themselves are somebody else's: a `Gate` is told one and says what it allows.
"""

import base64
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow.flight as fl
from typing_extensions import override

from hyprstream.runtime.keys import EVERYTHING, Grant, KeyScope
from hyprstream.runtime.warehouse.warehouse import Caller

Gate = Callable[[str], Grant | None]
"""Takes a key, returns what it allows; None if there is no such key."""

COOKIE = "arrow_flight_session_id"
_READING: frozenset[KeyScope] = frozenset({"inference", "ingest", "admin"})
_WRITING: frozenset[KeyScope] = frozenset({"ingest", "admin"})
_IDLE_S = 3600.0
_MOST_SESSIONS = 10_000


@dataclass(eq=False)
class Session:
    """What the calls of one client have in common.

    Attributes:
        id: A secret of the client.
        caller: Whose they are.
        key: The key that it was begun with.
        schema: Where names without a schema are looked for.
        transaction: Handle of the transaction that calls without one take part in.
        seen_at: When it was last used, on the monotonic clock.
        is_kept: Found again by its id.
    """

    id: str
    caller: Caller
    key: str = field(default="", repr=False)
    schema: str = "main"
    transaction: bytes | None = None
    seen_at: float = field(default_factory=time.monotonic)
    is_kept: bool = False


class Sessions(fl.ServerMiddlewareFactory):  # type: ignore[misc]  # pyarrow has no types
    """Finds out who calls, before each call, and keeps sessions while they are used.

    `authorization: Bearer KEY` is a key; `Basic` with a key as the password, under any name,
    starts a session whose token answers. Without a gate everybody is let in and may write.
    """

    def __init__(self, gate: Gate | None, on_close: Callable[[Session], None]) -> None:
        super().__init__()
        self._gate = gate
        self._on_close = on_close
        self._turn = threading.Lock()
        self._sessions: dict[str, Session] = {}

    @override
    def start_call(self, info: Any, headers: Mapping[str, Sequence[str]]) -> Any:
        """Let a call in; see the class."""
        sent = {name.lower(): values for name, values in headers.items()}
        kind, _, value = (sent.get("authorization") or [""])[0].partition(" ")
        if kind.lower() == "basic":
            session = self.keep(self._begun(_password(value)))
            return _Middleware(session, {"authorization": f"Bearer {session.id}"})
        if kind.lower() == "bearer" and (known := self._find(value)):
            return _Middleware(self._checked(known), {})
        session = self._begun(value if kind.lower() == "bearer" else "")
        known = self._find(_cookie(sent.get("cookie", ())))
        if known and known.caller == session.caller:
            return _Middleware(known, {})
        return _Middleware(session, {"set-cookie": f"{COOKIE}={session.id}"})

    def keep(self, session: Session) -> Session:
        """Remember a session, as something hangs on it; forget those nobody uses."""
        now = time.monotonic()
        with self._turn:
            idle = [s for s in self._sessions.values() if now - s.seen_at > _IDLE_S]
            if len(self._sessions) - len(idle) >= _MOST_SESSIONS:
                raise fl.FlightUnavailableError("there are too many sessions")
            session.is_kept = True
            self._sessions[session.id] = session
        for old in idle:
            self.drop(old)
        return session

    def drop(self, session: Session) -> None:
        """Forget a session and end what hangs on it."""
        with self._turn:
            self._sessions.pop(session.id, None)
        self._on_close(session)

    def _find(self, session_id: str) -> Session | None:
        with self._turn:
            session = self._sessions.get(session_id)
            if session:
                session.seen_at = time.monotonic()
            return session

    def _begun(self, key: str) -> Session:
        return Session(secrets.token_urlsafe(24), self._caller(key), key)

    def _checked(self, session: Session) -> Session:
        """Look whether the key of a session is one still."""
        try:
            self._caller(session.key)
        except fl.FlightUnauthenticatedError:
            self.drop(session)
            raise
        return session

    def _caller(self, key: str) -> Caller:
        if self._gate is None:
            return caller_of(EVERYTHING)
        if not key:
            raise fl.FlightUnauthenticatedError("a key is needed")
        grant = self._gate(key)
        if grant is None:
            raise fl.FlightUnauthenticatedError("the key is not known")
        if not grant.scopes & _READING:
            raise fl.FlightUnauthorizedError("this key is not for inference")
        return caller_of(grant)


def caller_of(grant: Grant) -> Caller:
    """Return who asks, and what they may do and see, by what a key allows."""
    return Caller(
        grant.id,
        can_write=bool(grant.scopes & _WRITING),
        can_manage="admin" in grant.scopes,
        adapters=grant.adapters,
    )


class _Middleware(fl.ServerMiddleware):  # type: ignore[misc]  # pyarrow has no types
    def __init__(self, session: Session, headers: dict[str, str]) -> None:
        super().__init__()
        self.session = session
        self._headers = headers

    @override
    def sending_headers(self) -> dict[str, str]:
        return self._headers


class OpenHandshake(fl.ServerAuthHandler):  # type: ignore[misc]  # pyarrow has no types
    """Lets a handshake succeed: the credentials are in headers, where `Sessions` reads them."""

    @override
    def authenticate(self, outgoing: Any, incoming: Any) -> None:
        """Do nothing."""

    @override
    def is_valid(self, token: bytes) -> bytes:
        """Accept: `Sessions` has checked the call already."""
        return b""


def _password(value: str) -> str:
    try:
        padded = value + "=" * (-len(value) % 4)  # clients in Go leave the padding out
        return base64.b64decode(padded).decode().partition(":")[2]
    except ValueError:
        raise fl.FlightUnauthenticatedError("the credentials cannot be read") from None


def _cookie(headers: Sequence[str]) -> str:
    for header in headers:
        for cookie in header.split(";"):
            name, _, value = cookie.strip().partition("=")
            if name == COOKIE:
                return value.strip('"')
    return ""
