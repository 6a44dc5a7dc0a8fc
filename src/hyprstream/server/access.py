"""Which route needs what, and who may have it: nothing is open that is not named as open.

Each route of the server is a `Route` with its scope. A request for anything else is refused
without a key, and answered with 404 only to callers who have one.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from starlette.routing import compile_path

from hyprstream.runtime.keys import EVERYTHING, Grant, KeyScope, Verifier
from hyprstream.server.errors import ApiError, ErrorForm

Needed = KeyScope | Literal["open"]

_BEARER = "bearer "
_MINUTE_S = 60.0
_CHALLENGE = {"WWW-Authenticate": "Bearer"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One route, and what it needs.

    Attributes:
        method: Of HTTP.
        path: Its pattern.
        endpoint: The function that answers.
        needs: The scope; `open` is for everybody.
        uploads: Its body is an adapter, and may be as long as one.
        name: Of the operation.
        error_form: How its errors are written.
    """

    method: str
    path: str
    endpoint: Callable[..., Any]
    needs: Needed
    uploads: bool = False
    name: str | None = None
    error_form: ErrorForm = "openai"


class Guard:
    """Decides about each request before anything of it is read but its head.

    Invariants, checked by `test_access.py`: a route that is not in the table is nobody's; a
    key does what its scopes say and no more; bounds hold for each key by itself.

    Args:
        routes: The table.
        verifier: Knows the keys; None admits everybody, which is for this machine alone.
        max_concurrent: Most requests of one key at a time.
        max_per_minute: Most in a minute; 0 counts none.
        clock: Seconds.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        verifier: Verifier | None,
        *,
        max_concurrent: int,
        max_per_minute: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table = [(route, compile_path(route.path)[0]) for route in routes]
        self._verifier = verifier
        self._max_concurrent = max_concurrent
        self._max_per_minute = max_per_minute
        self._clock = clock
        self._running: Counter[str] = Counter()
        self._left: dict[str, tuple[float, float]] = {}  # requests that may come, and since when

    def bound(self, *, max_concurrent: int, max_per_minute: int) -> None:
        """Set other bounds, from the next request on."""
        if max_per_minute != self._max_per_minute:
            self._left.clear()
        self._max_concurrent, self._max_per_minute = max_concurrent, max_per_minute

    def route(self, method: str, path: str) -> Route | None:
        """Find the route of a request."""
        for route, pattern in self._table:
            if route.method == method and pattern.fullmatch(path):
                return route
        return None

    def admit(self, route: Route | None, authorization: str) -> Grant:
        """Return what the caller may do.

        Raises:
            ApiError: The caller is unknown (401), or may not do this (403).
        """
        if route is not None and route.needs == "open":
            return Grant(id="anybody", scopes=frozenset())
        grant = EVERYTHING if self._verifier is None else self._known(authorization)
        if route is not None and route.needs not in grant.scopes:
            raise ApiError(
                403, f"this key is not for {route.needs}", code="insufficient_permissions"
            )
        return grant

    def enter(self, grant: Grant) -> None:
        """Count a request that begins; `leave` has to follow.

        Raises:
            ApiError: There are as many of this key as may be (429).
        """
        if self._running[grant.id] >= self._max_concurrent:
            raise ApiError(
                429,
                f"{self._max_concurrent} requests of this key are under way",
                code="too_many_requests",
                headers={"Retry-After": "1"},
            )
        self._spend(grant)
        self._running[grant.id] += 1

    def leave(self, grant: Grant) -> None:
        """Count a request that is over."""
        self._running[grant.id] -= 1
        if not self._running[grant.id]:
            del self._running[grant.id]

    def _known(self, authorization: str) -> Grant:
        assert self._verifier is not None, "somebody has to be asked"
        if authorization[: len(_BEARER)].lower() != _BEARER:
            raise ApiError(
                401,
                "a key is needed: send it as `Authorization: Bearer KEY` or `x-api-key: KEY`",
                code="missing_api_key",
                headers=_CHALLENGE,
            )
        grant = self._verifier.grant(authorization[len(_BEARER) :].strip())
        if grant is None:
            raise ApiError(
                401, "this is no key of this server", code="invalid_api_key", headers=_CHALLENGE
            )
        return grant

    def _spend(self, grant: Grant) -> None:
        """Take one from what a key may ask for, which comes back evenly over a minute."""
        most = self._max_per_minute
        if not most:
            return
        now = self._clock()
        left, since = self._left.get(grant.id, (float(most), now))
        left = min(float(most), left + (now - since) * most / _MINUTE_S)
        if left < 1:
            wait_s = (1 - left) * _MINUTE_S / most
            raise ApiError(
                429,
                f"this key may ask {most} times in a minute",
                code="rate_limit_exceeded",
                headers={"Retry-After": f"{wait_s + 0.5:.0f}" if wait_s >= 1 else "1"},
            )
        self._left[grant.id] = (left - 1, now)
