"""The application: all routes behind one gate."""

import time
from collections.abc import Sequence

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from hyprstream import __version__
from hyprstream.errors import HyprstreamError
from hyprstream.runtime import Settings
from hyprstream.runtime.bases import Bases
from hyprstream.runtime.keys import Verifier
from hyprstream.runtime.runtime import Runtime
from hyprstream.server.access import Guard, Route
from hyprstream.server.errors import answer_error
from hyprstream.server.live import LiveConfig
from hyprstream.server.metrics import Metrics
from hyprstream.server.middleware import REQUEST_ID, Gate
from hyprstream.server.routes import (
    adapters,
    chat,
    console,
    learning,
    messages,
    models,
    responses,
    samples,
    service,
    texts,
    watching,
)
from hyprstream.server.state import ServerState
from hyprstream.server.tracing import Tracing

ROUTES: Sequence[Route] = (
    *chat.ROUTES,
    *responses.ROUTES,
    *messages.ROUTES,
    *texts.ROUTES,
    *models.ROUTES,
    *samples.ROUTES,
    *watching.ROUTES,
    *console.ROUTES,
    *adapters.ROUTES,
    *learning.ROUTES,
    *service.ROUTES,
)


def build_routes() -> FastAPI:
    """Put the routes together; nothing stands before them yet, and nothing behind them."""
    app = FastAPI(
        title="Hyprstream",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    for route in ROUTES:
        app.add_api_route(
            route.path,
            route.endpoint,
            methods=[route.method],
            name=route.name,
            response_model=None,
        )
    for kind in (HyprstreamError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer_error)
    return app


def build_app(
    runtime: Runtime,
    verifier: Verifier | None,
    live: LiveConfig | None = None,
    tracing: Tracing | None = None,
    bases: Bases | None = None,
) -> ASGIApp:
    """Put the application together.

    Args:
        runtime: Serves with the first model; it has been entered.
        verifier: Knows the keys; None admits everybody.
        live: The settings; None takes those of the runtime, which never change.
        tracing: Traces requests; None traces none.
        bases: All models, which have been entered; None serves the first one alone.
    """
    live = live or LiveConfig(runtime.settings)
    config = live.current
    metrics = Metrics(
        num_requests=lambda: runtime.num_requests,
        num_adapters=lambda: runtime.num_versions_in_use,
    )
    state = ServerState(
        runtime=runtime,
        bases=bases or Bases(runtime),
        live=live,
        metrics=metrics,
        started_at=int(time.time()),
    )
    routes = build_routes()
    routes.state.server = state
    guard = Guard(
        ROUTES,
        verifier,
        max_concurrent=config.max_concurrent,
        max_per_minute=config.max_per_minute,
    )

    def bound(settings: Settings) -> None:
        server = settings.server
        guard.bound(max_concurrent=server.max_concurrent, max_per_minute=server.max_per_minute)
        if runtime.learning is not None:
            runtime.learning.set_retention(settings.train.retention)

    live.listen(bound)
    if tracing is not None:
        runtime.observe(tracing.answered)
    app: ASGIApp = Gate(routes, guard=guard, live=live, observe=metrics.request, tracing=tracing)
    if config.cors_origins:
        app = CORSMiddleware(
            app,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "X-API-Key", "Content-Type", REQUEST_ID],
            expose_headers=[REQUEST_ID],
        )
    return app
