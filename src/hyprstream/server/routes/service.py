"""What tells how the server is: `/health`, `/ready`, `/version`, `/metrics`, `/openapi.json`."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hyprstream import __version__
from hyprstream.errors import HyprstreamError
from hyprstream.server.access import Route
from hyprstream.server.errors import api_error, settings_error
from hyprstream.server.metrics import CONTENT_TYPE
from hyprstream.server.observed import observe
from hyprstream.server.state import grant_of, state_of


async def health(request: Request) -> Response:
    """Tell whether the process serves; the one route that is open to everybody."""
    if state_of(request).runtime.failure is not None:
        return JSONResponse({"status": "failed"}, 503)
    return JSONResponse({"status": "ok"})


async def ready(request: Request) -> Response:
    """Tell whether requests are taken."""
    state = state_of(request)
    failure = state.runtime.failure
    if failure is not None:
        return api_error(failure).response()
    return JSONResponse({"status": "ready", "model": state.model_name})


async def version(_request: Request) -> Response:
    """Tell which program this is."""
    return JSONResponse({"name": "hyprstream", "version": __version__})


async def metrics(request: Request) -> Response:
    """Tell what was counted, for Prometheus."""
    state = state_of(request)
    may_see = grant_of(request).may_use
    moment = await observe(state.runtime, state.config.max_metric_adapters, may_see)
    return Response(state.metrics.page(moment), media_type=CONTENT_TYPE)


async def reload(request: Request) -> Response:
    """Read the settings again; those that cannot be used change nothing."""
    try:
        done = state_of(request).live.reload()
    except HyprstreamError as error:
        raise settings_error(error) from error
    return JSONResponse({"changed": done.changed, "waiting": done.waiting})


async def openapi(request: Request) -> Response:
    """Describe the API, as OpenAPI has it."""
    return JSONResponse(request.app.openapi())


ROUTES = (
    Route(method="GET", path="/health", endpoint=health, needs="open"),
    Route(method="GET", path="/ready", endpoint=ready, needs="inference"),
    Route(method="GET", path="/version", endpoint=version, needs="inference"),
    Route(method="GET", path="/metrics", endpoint=metrics, needs="admin"),
    Route(method="POST", path="/v1/settings/reload", endpoint=reload, needs="admin"),
    Route(method="GET", path="/openapi.json", endpoint=openapi, needs="inference"),
)
