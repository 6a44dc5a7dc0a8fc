"""The server process: a socket, a runtime, uvicorn between them, and an end in good order."""

import asyncio
import functools
import logging
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol

from hyprstream.errors import InvalidSettingsError, UnavailableError
from hyprstream.runtime.bases import Bases
from hyprstream.runtime.keys import KeyFile, Verifier
from hyprstream.runtime.model import Model
from hyprstream.runtime.remote import marked
from hyprstream.runtime.runtime import Runtime
from hyprstream.runtime.server_config import ServerConfig
from hyprstream.runtime.settings import Settings
from hyprstream.server.app import build_app
from hyprstream.server.errors import ApiError, error_body
from hyprstream.server.live import LiveConfig
from hyprstream.server.sse import encode
from hyprstream.server.tracing import Tracing, open_tracing

log = logging.getLogger(__name__)

Beside = Callable[[Runtime], AbstractAsyncContextManager[object]]
"""Serves with a runtime while the context lasts."""

_KEEP_ALIVE_S = 30
_MAX_HEAD_BYTES = 32_768
_MIN_KEY_CHARS = 16


def open_verifier(settings: Settings) -> Verifier | None:
    """Return who knows the keys; None where there are none and none is needed.

    Whether keys are needed is decided once: a server does not open up when its last key is
    revoked.

    Raises:
        InvalidSettingsError: The server could be reached from outside, and there is no key.
    """
    operator = settings.api_key.get_secret_value()
    if operator and len(operator) < _MIN_KEY_CHARS:
        raise InvalidSettingsError(
            f"HYPRSTREAM_API_KEY has {len(operator)} characters",
            hint=f"Give it {_MIN_KEY_CHARS} or more, as `hyprstream auth key create` makes them.",
        )
    verifier = Verifier(KeyFile(settings.keys_folder), operator)
    if verifier.has_keys:
        return verifier
    if settings.server.is_local:
        return None
    raise InvalidSettingsError(
        f"the server would be open to everybody who can reach {settings.server.host}",
        hint="Make a key with `hyprstream auth key create`, or listen at 127.0.0.1.",
    )


def bind(config: ServerConfig) -> socket.socket:
    """Take the address, before a model is loaded in vain.

    Raises:
        InvalidSettingsError: There is no such address here.
        UnavailableError: It is taken.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((config.host, config.port))
    except socket.gaierror as error:
        taken.close()
        raise InvalidSettingsError(
            f"server.host is {config.host!r}: {error.strerror}", hint="Name an address of here."
        ) from error
    except OSError as error:
        taken.close()
        raise UnavailableError(
            f"{config.host}:{config.port} cannot be listened at: {error.strerror}",
            hint="Choose another port with --port; 0 takes a free one.",
        ) from error
    return taken


def check_tls(config: ServerConfig) -> None:
    """Read the files of TLS, before a model is loaded in vain.

    Raises:
        InvalidSettingsError: They cannot be used.
    """
    if not config.tls_cert:
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(config.tls_cert, config.tls_key)
        if config.tls_client_ca:
            context.load_verify_locations(config.tls_client_ca)
    except OSError as error:  # an SSLError is one
        raise InvalidSettingsError(
            f"the files of TLS cannot be used: {error.strerror or error}",
            hint="Give PEM files: server.tls_cert with the chain, server.tls_key with its key.",
        ) from error


def _nothing(_runtime: Runtime) -> AbstractAsyncContextManager[object]:
    return nullcontext()


def serve(
    model: Model,
    settings: Settings,
    listening: socket.socket,
    verifier: Verifier | None,
    announce: Callable[[int], None],
    load: Callable[[], Settings] | None = None,
    beside: Beside = _nothing,
) -> None:
    """Serve until a signal ends it; answers under way are finished first.

    Args:
        model: What to serve.
        settings: How.
        listening: A socket that is bound.
        verifier: Knows the keys; None admits everybody.
        announce: Told the port when requests are taken.
        load: Reads the settings again, on SIGHUP; None: they never change.
        beside: What else serves with the runtime, from before that until answers have ended.

    Raises:
        KeyboardInterrupt: Ctrl-C ended it, in good order.
        HyprstreamError: It could not begin.
    """
    live, tracing = LiveConfig(settings, load), open_tracing(settings.server)
    try:
        ended_by = asyncio.run(
            _serve(
                _running(model, settings, beside),
                settings,
                listening,
                announce,
                live,
                verifier=verifier,
                tracing=tracing,
            )
        )
    finally:
        if tracing is not None:
            tracing.close()
    if ended_by == signal.SIGINT:
        raise KeyboardInterrupt


@asynccontextmanager
async def _running(model: Model, settings: Settings, beside: Beside) -> AsyncIterator[Runtime]:
    async with Runtime(model, settings) as runtime, beside(runtime):
        yield runtime


async def _serve(
    running: AbstractAsyncContextManager[Runtime],
    settings: Settings,
    listening: socket.socket,
    announce: Callable[[int], None],
    live: LiveConfig,
    *,
    verifier: Verifier | None,
    tracing: Tracing | None,
) -> int | None:
    async with running as runtime, Bases(runtime) as bases:
        app = build_app(runtime, verifier, live, tracing, bases)
        server = _Server(uvicorn_config(app, settings.server))
        server.reload = functools.partial(_reload, live, server)
        port = listening.getsockname()[1]
        server.when_started = lambda: announce(port)
        server.when_ending = runtime.events.close  # who looks on would hold it up
        with ExitStack() as told:
            if runtime.learning is not None:
                told.enter_context(marked(settings, _local_url(settings.server, port)))
            await server.serve([listening])
        return server.ended_by


def _reload(live: LiveConfig, server: uvicorn.Server) -> None:
    """Read the settings again, and the files of TLS, which hold for new connections."""
    live.reload_and_tell()
    config = live.current
    context = server.config.ssl
    if context is None:
        return
    try:
        check_tls(config)
    except InvalidSettingsError as error:
        log.error("the certificate in force stays: %s", error)
        return
    context.load_cert_chain(config.tls_cert, config.tls_key)


def _local_url(config: ServerConfig, port: int) -> str:
    """Write the URL by which this machine reaches the server."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)  # noqa: S104
    return f"{config.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def uvicorn_config(app: ASGIApp, config: ServerConfig) -> uvicorn.Config:
    """Say how uvicorn serves an application: HTTP/1.1 with limits, and nothing by its own mind."""

    def protocol(*arguments: Any, **options: Any) -> "TimedProtocol":
        return TimedProtocol(
            *arguments,
            head_timeout_s=config.header_timeout_s,
            max_connections=config.max_connections,
            **options,
        )

    def tls(_config: uvicorn.Config, make: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        context = make()
        context.minimum_version = (
            ssl.TLSVersion.TLSv1_3 if config.tls_min_version == "1.3" else ssl.TLSVersion.TLSv1_2
        )
        return context

    return uvicorn.Config(
        app,
        http=protocol,  # type: ignore[arg-type]  # what makes a protocol will do
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(config.drain_s)),
        h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
        ssl_certfile=config.tls_cert or None,
        ssl_keyfile=config.tls_key or None,
        ssl_ca_certs=config.tls_client_ca or None,
        ssl_cert_reqs=ssl.CERT_REQUIRED if config.tls_client_ca else ssl.CERT_NONE,
        ssl_context_factory=tls if config.tls_cert else None,
    )


async def _refuse_connection(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer on a connection that is one too many."""
    error = ApiError(
        503,
        "the server has as many connections as it takes",
        code="too_many_connections",
        headers={"Retry-After": "1", "Connection": "close"},
    )
    await error.response()(scope, receive, send)


class _Server(uvicorn.Server):
    """Ends at the first signal in good order, at the second one at once."""

    when_started: Callable[[], None]
    when_ending: Callable[[], None]
    reload: Callable[[], None]
    ended_by: int | None = None

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.when_started()

    @override
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, number)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)

    def _end(self, number: int) -> None:
        log.info("signal %d: answers under way are finished", number)
        self.force_exit = self.should_exit
        self.should_exit = True
        self.ended_by = number
        self.when_ending()


class TimedProtocol(H11Protocol):
    """HTTP/1.1 whose heads have to arrive in time, so that slow ones hold no connection.

    Bodies and answers have times of their own, in `server/middleware.py` and `server/sse.py`.
    What is refused here, before there is a request, is told in the form of all errors.
    """

    def __init__(
        self, *arguments: Any, head_timeout_s: float, max_connections: int, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._served = self.app
        self._max_connections = max_connections
        self._head_timeout_s = head_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None

    @override
    def handle_events(self) -> None:
        # Uvicorn's own bound would answer in plain text.
        busy = len(self.connections) > self._max_connections
        self.app = _refuse_connection if busy else self._served
        super().handle_events()

    @override
    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.close()  # in the middle of an answer there is no place for another
            return
        status = getattr(sys.exception(), "error_status_hint", 400)
        if status == 431:
            message, code = f"the head has more than {_MAX_HEAD_BYTES} bytes", "head_too_large"
        else:
            message, code = "what came is no HTTP request", "invalid_http"
        content = encode(error_body(status, message, code=code))
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(content))),
            ("connection", "close"),
        ]
        for event in (
            h11.Response(status_code=status, headers=headers),
            h11.Data(data=content),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self._watch()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    @override
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._unwatch()
        elif self._head_timer is None and self.conn.trailing_data[0]:
            self._watch()

    def _watch(self) -> None:
        self._head_timer = self.loop.call_later(self._head_timeout_s, self._cut)

    def _unwatch(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _cut(self) -> None:
        self._head_timer = None
        if self.conn.their_state is h11.IDLE:
            self.transport.close()
