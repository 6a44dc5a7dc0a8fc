"""`/v1/models`: the base model, and the adapters that it can answer with."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from hyprstream.refs import AdapterName
from hyprstream.server.access import Route
from hyprstream.server.sse import encode
from hyprstream.server.state import ServerState, grant_of, state_of


async def list_models(request: Request) -> Response:
    """List the models that the key may use."""
    state, grant = state_of(request), grant_of(request)
    found = [_base(state)]
    if state.runtime.generates:
        for name, record in (await _adapters(state)).items():
            if grant.may_use(name):
                found.append(record)
    return _json({"object": "list", "data": found})


async def show_model(request: Request, model: str) -> Response:
    """Describe one model."""
    state = state_of(request)
    ref = state.adapter(model, grant_of(request))
    return _json(_base(state) if ref is None else await _adapter(state, ref))


async def list_adapter_models(request: Request, lora: str) -> Response:
    """List the one model of the path."""
    state = state_of(request)
    ref = str(state.allowed(lora, grant_of(request)))
    return _json({"object": "list", "data": [await _adapter(state, ref)]})


def _base(state: ServerState) -> dict[str, Any]:
    model = state.runtime.model
    name = state.model_name
    return {
        "id": name,
        "object": "model",
        "created": state.started_at,
        "owned_by": "hyprstream",
        "root": name,
        "parent": None,
        "max_model_len": model.context_length,
    }


async def _adapters(state: ServerState) -> dict[AdapterName, dict[str, Any]]:
    found = await state.runtime.compatible_adapters()
    return {
        adapter.name: _record(
            state, adapter.name, adapter.version, int(adapter.moved_at.timestamp())
        )
        for adapter in found
    }


async def _adapter(state: ServerState, ref: str) -> dict[str, Any]:
    version = await state.runtime.resolve(ref)
    known = (await _adapters(state)).get(AdapterName(ref))
    if known is not None:
        return known
    return _record(state, ref, version, state.started_at)


def _record(state: ServerState, name: str, version: str, created: int) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "hyprstream",
        "root": f"{name.partition('@')[0]}@{version[:12]}",
        "parent": state.model_name,
        "max_model_len": state.runtime.model.context_length,
        "version": version,
    }


def _json(data: object) -> Response:
    return Response(encode(data), media_type="application/json")


ROUTES = (
    Route(method="GET", path="/v1/models", endpoint=list_models, needs="inference"),
    Route(method="GET", path="/v1/models/{model:path}", endpoint=show_model, needs="inference"),
    Route(
        method="GET",
        path="/v1/inference/{lora:path}/models",
        endpoint=list_adapter_models,
        needs="inference",
    ),
)
