"""What stands before every route: ids, hosts, keys, bounds and the last word on errors.

Plain ASGI, one class, so that the order is the order of its lines.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hyprstream.errors import HyprstreamError
from hyprstream.refs import is_loopback
from hyprstream.server.access import Guard, Route
from hyprstream.server.errors import ApiError, ErrorForm, api_error, internal_error
from hyprstream.server.live import LiveConfig
from hyprstream.server.logs import told
from hyprstream.server.tracing import Over, Tracing

log = logging.getLogger(__name__)

REQUEST_ID = "X-Request-ID"
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Gate:
    """Lets requests pass to the routes, or answers itself.

    Args:
        app: The routes.
        guard: Knows who may do what.
        live: Settings of the server.
        observe: Told the route, status and seconds of each request.
        tracing: Traces requests; None traces none.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        guard: Guard,
        live: LiveConfig,
        observe: Callable[[str, int, float], None],
        tracing: Tracing | None = None,
    ) -> None:
        self._app = app
        self._guard = guard
        self._live = live
        self._observe = observe
        self._trace = _untraced if tracing is None else tracing.request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID, "")
        request_id = given if _ID.fullmatch(given) else secrets.token_hex(16)
        scope.setdefault("state", {})["request_id"] = request_id
        with self._trace(headers, request_id) as over:
            await self._serve(scope, receive, send, request_id, over)

    async def _serve(
        self, scope: Scope, receive: Receive, send: Send, request_id: str, over: Over
    ) -> None:
        route = self._guard.route(scope["method"], scope["path"])
        form: ErrorForm = route.error_form if route else "openai"
        scope["state"]["error_form"] = form
        began = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer[REQUEST_ID] = request_id
                answer["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await self._pass(route, scope, receive, send_with_id)
        except ApiError as error:
            await error.response(form)(scope, receive, send_with_id)
        except HyprstreamError as error:
            await api_error(error).response(form)(scope, receive, send_with_id)
        except Exception:
            # The last stop: whatever it is, the others go on.
            log.exception("request %s failed", request_id, extra=told(request_id=request_id))
            if not status:
                await internal_error().response(form)(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - began
            name = route.path if route else "none"
            log.info(
                "%s %s %s %d %.3f s",
                *(request_id, scope["method"], name, status, seconds),
                extra=told(
                    request_id=request_id,
                    method=scope["method"],
                    route=name,
                    status=status,
                    seconds=round(seconds, 6),
                ),
            )
            self._observe(name, status, seconds)
            over(name, status)

    async def _pass(self, route: Route | None, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self._check_host(headers)
        self._check_origin(headers, scope)
        grant = self._guard.admit(route, _authorization(headers))
        scope["state"]["grant"] = grant
        is_counted = route is not None and route.needs != "open"
        if is_counted:
            self._guard.enter(grant)
        try:
            config = self._live.current
            uploads = route is not None and route.uploads
            most = config.max_upload_bytes if uploads else config.max_body_bytes
            body = _Body(receive, most, config.body_timeout_s)
            body.check_length(headers.get("content-length", "0"))
            await self._app(scope, body, send)
        finally:
            if is_counted:
                self._guard.leave(grant)

    def _check_host(self, headers: Headers) -> None:
        """Refuse a name that only a rebound DNS entry would bring here.

        A web page can let its own name point at this machine, and would then be of the same
        origin as the server; the name gives it away.
        """
        host = headers.get("host", "")
        name = _name_of(host)
        config = self._live.current
        if name in config.allowed_hosts:
            return
        if config.allowed_hosts or config.is_local:
            if is_loopback(host):
                return
            raise ApiError(
                421,
                "the server is not known by this name; server.allowed_hosts adds names",
                code="unknown_host",
            )

    def _check_origin(self, headers: Headers, scope: Scope) -> None:
        """Refuse what a page of another origin asks for: browsers send some of that unasked."""
        origin = headers.get("origin")
        if origin is None or origin in self._live.current.cors_origins:
            return
        if origin == f"{scope['scheme']}://{headers.get('host', '')}":
            return
        raise ApiError(
            403,
            "pages of other origins may not use this server; server.cors_origins adds some",
            code="origin_not_allowed",
        )


class _Body:
    """A body that is not longer, and does not take longer, than it may."""

    def __init__(self, receive: Receive, max_bytes: int, timeout_s: float) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._left_bytes = max_bytes
        self._timeout_s = timeout_s
        self._until: float | None = None
        self._is_complete = False

    def check_length(self, length: str) -> None:
        """Refuse a body that says itself that it is too long."""
        if not length.isascii() or not length.isdigit():
            raise ApiError(400, "Content-Length is no number", code="invalid_request")
        if len(length) > 18 or int(length) > self._max_bytes:
            raise self._too_long()

    async def __call__(self) -> Message:
        """Receive the next message."""
        if self._is_complete:  # what follows is that the client goes away
            return await self._receive()
        if self._until is None:
            self._until = asyncio.get_running_loop().time() + self._timeout_s
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(408, "the body took too long to arrive", code="body_timeout") from None
        if message["type"] == "http.request":
            self._left_bytes -= len(message.get("body", b""))
            if self._left_bytes < 0:
                raise self._too_long()
            self._is_complete = not message.get("more_body", False)
        return message

    def _too_long(self) -> ApiError:
        return ApiError(
            413, f"the body is longer than {self._max_bytes} bytes", code="body_too_large"
        )


def _authorization(headers: Headers) -> str:
    """Return the key as a bearer, also where it comes as Anthropic's clients send it."""
    key = headers.get("x-api-key")
    given = headers.get("authorization", "")
    return f"Bearer {key}" if key and not given else given


@contextmanager
def _untraced(headers: Headers, request_id: str) -> Iterator[Over]:
    del headers, request_id
    yield lambda _route, _status: None


def _name_of(host: str) -> str:
    """Return a host without its port, in lower case."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    return name.lower()
