"""`/v1/models`: the base models and their adapters; `/v1/ps`: what is in memory."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from hyprstream.refs import AdapterName, AdapterRef
from hyprstream.runtime.bases import Running
from hyprstream.runtime.keys import Grant
from hyprstream.runtime.residence import Resident
from hyprstream.server.access import Route
from hyprstream.server.sse import encode
from hyprstream.server.state import ServerState, Target, grant_of, state_of


async def list_models(request: Request) -> Response:
    """List the models that the key may use."""
    state, grant = state_of(request), grant_of(request)
    found = []
    for running in state.bases.listed():
        found.append(_base(state, running))
        if state.runtime.generates or running.name != state.model_name:
            for name, record in (await _adapters(state, running)).items():
                if grant.may_use(name):
                    found.append(record)
    return _json({"object": "list", "data": found})


async def show_model(request: Request, model: str) -> Response:
    """Describe one model."""
    state = state_of(request)
    return _json(await _described(state, state.target(model, grant_of(request))))


async def list_adapter_models(request: Request, lora: str) -> Response:
    """List the one model of the path."""
    state = state_of(request)
    target = state.target(lora, grant_of(request))
    return _json({"object": "list", "data": [await _described(state, target)]})


async def running_models(request: Request) -> Response:
    """Tell which models are in memory, until when, and with which adapters."""
    state, grant = state_of(request), grant_of(request)
    return _json({"models": [_running(found, grant) for found in state.bases.listed()]})


async def _described(state: ServerState, target: Target) -> dict[str, Any]:
    [running] = [found for found in state.bases.listed() if found.name == target.base]
    if target.adapter is None:
        return _base(state, running)
    return await _adapter(state, running, target.adapter)


def _base(state: ServerState, running: Running) -> dict[str, Any]:
    return {
        "id": running.name,
        "object": "model",
        "created": state.started_at,
        "owned_by": "hyprstream",
        "root": running.name,
        "parent": None,
        "max_model_len": running.context_length,
        "state": running.state,
    }


async def _adapters(state: ServerState, running: Running) -> dict[AdapterName, dict[str, Any]]:
    """List the adapters of a model; none while nobody knows what the model is."""
    base = state.bases.fingerprint(running.name)
    if base is None:
        return {}
    return {
        adapter.name: _record(
            state, running, adapter.name, adapter.version, int(adapter.moved_at.timestamp())
        )
        for adapter in await state.runtime.compatible_adapters(base)
    }


async def _adapter(state: ServerState, running: Running, ref: str) -> dict[str, Any]:
    runtime, base = state.runtime, state.bases.fingerprint(running.name)
    if base is None:  # it was never loaded: whether the adapter is for it is not known yet
        version = await runtime.in_pool(lambda: runtime.adapters.resolve(ref))
    else:
        version = await runtime.resolve(ref, base)
    known = (await _adapters(state, running)).get(AdapterName(ref))
    if known is not None:
        return known
    return _record(state, running, ref, version, state.started_at)


def _record(
    state: ServerState, running: Running, name: str, version: str, created: int
) -> dict[str, Any]:
    is_first = running.name == state.model_name
    return {
        "id": name if is_first else f"{running.name}:{name}",
        "object": "model",
        "created": created,
        "owned_by": "hyprstream",
        "root": f"{name.partition('@')[0]}@{version[:12]}",
        "parent": running.name,
        "max_model_len": running.context_length,
        "version": version,
    }


def _running(found: Running, grant: Grant) -> dict[str, Any]:
    return {
        "name": found.name,
        "state": found.state,
        "size_bytes": found.size_bytes,
        "context_length": found.context_length,
        "num_requests": found.num_requests,
        "until": found.until.isoformat(timespec="seconds") if found.until else None,
        "adapters": [
            {"name": resident.ref, "version": resident.version, "in_use": resident.in_use}
            for resident in found.adapters
            if _may_see(resident, grant)
        ],
    }


def _may_see(resident: Resident, grant: Grant) -> bool:
    return grant.may_use(AdapterRef.parse(resident.ref).name)


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
    Route(method="GET", path="/v1/ps", endpoint=running_models, needs="inference"),
)
