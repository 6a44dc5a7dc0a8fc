"""Adapters: make, list, describe, move, take in, give out, delete."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from hyprstream.errors import CorruptError, InvalidRequestError
from hyprstream.refs import AdapterName, adapter_name
from hyprstream.runtime import (
    Adapters,
    Destination,
    Note,
    Source,
    create_adapter,
    export_adapter,
    import_adapter,
)
from hyprstream.server.access import Route
from hyprstream.server.adapter_records import (
    coverage_record,
    info_record,
    listed,
    move_record,
    stats_record,
)
from hyprstream.server.errors import damaged_upload
from hyprstream.server.schemas.adapters import CreateAdapter, Promote, Rollback
from hyprstream.server.state import grant_of, state_of

Result = TypeVar("Result")
Single = Literal["safetensors", "gguf"]
"""Formats of one file."""


async def create(request: Request, body: CreateAdapter) -> Response:
    """Make an adapter that adds nothing yet."""
    runtime = state_of(request).runtime
    _allowed_name(request, body.name)
    recipe, note = body.recipe, _note(request, body.why)
    await _do(
        request,
        lambda adapters: create_adapter(adapters, body.name, runtime.model, recipe, note),
    )
    found = await _do(request, lambda adapters: adapters.info(body.name))
    return JSONResponse(info_record(found), 201)


async def list_adapters(request: Request) -> Response:
    """List the adapters that the key may use."""
    grant = grant_of(request)
    found = await _do(request, lambda adapters: adapters.list())
    data = [listed(adapter) for adapter in found if grant.may_use(adapter.name)]
    return JSONResponse({"object": "list", "data": data})


async def info(request: Request, lora: str) -> Response:
    """Describe an adapter, or a version of it: NAME, NAME:TAG or NAME@VERSION."""
    ref = str(state_of(request).allowed(lora, grant_of(request)))
    found = await _do(request, lambda adapters: adapters.info(ref))
    return JSONResponse(info_record(found))


async def stats(request: Request, lora: str) -> Response:
    """Tell what an adapter does to each layer."""
    ref = str(state_of(request).allowed(lora, grant_of(request)))
    found = await _do(request, lambda adapters: adapters.info(ref))
    return JSONResponse(stats_record(found))


async def history(request: Request, lora: str) -> Response:
    """List the moves of a name, the first one first."""
    name = _allowed_name(request, lora)
    moves = await _do(request, lambda adapters: adapters.history(name))
    return JSONResponse({"object": "list", "data": [move_record(move) for move in moves]})


async def promote(request: Request, lora: str, body: Promote) -> Response:
    """Let a name point at another of its versions."""
    name = _allowed_name(request, lora)
    if (body.version is None) == (body.tag is None):
        raise InvalidRequestError(
            "there is not one of version and tag", hint="Send one of the two."
        )
    ref = f"{name}@{body.version}" if body.tag is None else f"{name}:{body.tag}"
    note = _note(request, body.why)
    version = await _do(request, lambda adapters: adapters.promote(ref, note))
    await _tell_learning(request)
    return JSONResponse({"name": name, "version": version})


async def rollback(request: Request, lora: str, body: Rollback) -> Response:
    """Undo the last promotion that was not undone yet."""
    name, note = _allowed_name(request, lora), _note(request, body.why)
    version = await _do(request, lambda adapters: adapters.rollback(name, note))
    state_of(request).metrics.rolled_back()
    await _tell_learning(request)
    return JSONResponse({"name": name, "version": version})


async def delete(request: Request, lora: str) -> Response:
    """Take a name away, and the versions that nothing else leads to."""
    name = _allowed_name(request, lora)
    gone = await _do(request, lambda adapters: adapters.delete(name))
    await _tell_learning(request)
    removed = {"versions": len(gone.versions), "freed_bytes": gone.freed_bytes}
    return JSONResponse({"name": name, "deleted": True, **removed})


async def take_in(request: Request, lora: str) -> Response:
    """Take in an adapter as one file: SafeTensors, as PEFT names things, or GGUF.

    The body is the file. Files with pickled content are never read.
    """
    runtime = state_of(request).runtime
    name, note = _allowed_name(request, lora), _note(request, "sent in")
    await _do(request, lambda adapters: adapters.check_free(name))
    with tempfile.TemporaryDirectory(prefix="hyprstream-") as folder:
        path = Path(folder) / "adapter"
        with path.open("wb") as file:
            async for piece in request.stream():
                await runtime.in_pool(partial(file.write, piece))
        source = Source(path=_with_suffix(path))
        try:
            _, coverage = await _do(
                request,
                lambda adapters: import_adapter(adapters, name, runtime.model, source, note=note),
            )
        except CorruptError as error:
            raise damaged_upload(error) from error
    found = await _do(request, lambda adapters: adapters.info(name))
    return JSONResponse({**info_record(found), "coverage": coverage_record(coverage)}, 201)


async def give_out(request: Request, lora: str, format: Single = "safetensors") -> Response:  # noqa: A002
    """Give out an adapter as one file."""
    runtime = state_of(request).runtime
    ref = state_of(request).allowed(lora, grant_of(request))
    folder = tempfile.TemporaryDirectory(prefix="hyprstream-")
    try:
        path = Path(folder.name) / f"adapter.{format}"
        to = Destination(path=path, format=format)
        await _do(request, lambda adapters: export_adapter(adapters, str(ref), runtime.model, to))
    except BaseException:
        folder.cleanup()
        raise
    name = f"{ref.name.replace('/', '-')}.{format}"
    return FileResponse(
        path,
        media_type="application/octet-stream",
        filename=name,
        background=BackgroundTask(folder.cleanup),
    )


async def _do(request: Request, work: Callable[[Adapters], Result]) -> Result:
    """Do work on the store, on a thread that may wait for it."""
    runtime = state_of(request).runtime
    return await runtime.in_pool(lambda: work(runtime.adapters))


async def _tell_learning(request: Request) -> None:
    """Let learning look at names that were moved or deleted, and at what that ends."""
    if (learning := state_of(request).runtime.learning) is not None:
        await learning.refresh()


def _allowed_name(request: Request, lora: str) -> AdapterName:
    """Read the name of an adapter that the key may use."""
    name = adapter_name(lora)
    state_of(request).allowed(name, grant_of(request))
    return name


def _note(request: Request, why: str) -> Note:
    return Note(by=f"key {grant_of(request).id}", why=why)


def _with_suffix(path: Path) -> Path:
    """Give a file the suffix of what it is, by its first bytes."""
    with path.open("rb") as file:
        suffix = ".gguf" if file.read(4) == b"GGUF" else ".safetensors"
    return path.rename(path.with_suffix(suffix))


def _route(method: str, path: str, endpoint: Callable[..., Any], **fields: Any) -> Route:
    needs: Literal["inference", "admin"] = "inference" if method == "GET" else "admin"
    return Route(method=method, path=path, endpoint=endpoint, needs=needs, **fields)


ROUTES = (
    _route("GET", "/v1/adapters", list_adapters),
    _route("POST", "/v1/adapters", create),
    _route("GET", "/v1/adapters/{lora:path}/history", history),
    _route("GET", "/v1/adapters/{lora:path}/stats", stats),
    Route(method="GET", path="/v1/adapters/{lora:path}/export", endpoint=give_out, needs="admin"),
    _route("POST", "/v1/adapters/{lora:path}/promote", promote),
    _route("POST", "/v1/adapters/{lora:path}/rollback", rollback),
    _route("POST", "/v1/adapters/{lora:path}/import", take_in, uploads=True),
    _route("GET", "/v1/adapters/{lora:path}", info),
    _route("DELETE", "/v1/adapters/{lora:path}", delete),
    _route("GET", "/v1/lora/list", list_adapters),
    _route("POST", "/v1/lora/create", create),
    _route("GET", "/v1/lora/{lora:path}/info", info),
    _route("GET", "/v1/lora/{lora:path}/stats", stats),
    _route("DELETE", "/v1/lora/{lora:path}/delete", delete),
)
