"""What lets people look on: `/v1/events` and `/v1/stats`."""

import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hyprstream.runtime.events import Event
from hyprstream.runtime.load import RuntimeLoad, StoredSize
from hyprstream.server.access import Route
from hyprstream.server.sse import EventStream, encode
from hyprstream.server.state import grant_of, state_of

_MAX_S = 900.0  # then clients come again, with a key that is still good
_ID = re.compile(r"([0-9a-f]{8})-(\d{1,15})")


async def events(request: Request, adapter: str | None = None) -> Response:
    """Send what happens, as it happens, after what is remembered of it.

    `adapter` limits it to one. `Last-Event-ID` goes on after that event.
    """
    state, grant = state_of(request), grant_of(request)
    only = None if adapter is None else state.allowed(adapter, grant).name

    def is_wanted(event: Event) -> bool:
        name = event.adapter
        return name is None or (grant.may_use(name) and only in (None, name))

    happened = state.runtime.events
    after = _after(request.headers.get("last-event-id"), happened.epoch)

    async def frames() -> AsyncGenerator[bytes, None]:
        yield b"retry: 2000\n\n"
        async with aclosing(happened.follow(after, seconds=_MAX_S)) as followed:
            async for event in followed:
                if is_wanted(event):
                    yield _frame(event, happened.epoch)

    sent = frames()
    return EventStream(
        sent,
        ping_s=state.config.ping_s,
        write_timeout_s=state.config.write_timeout_s,
        finish=sent.aclose,
    )


async def stats(request: Request) -> Response:
    """Tell how much the server does and holds, and what adapters take."""
    state, grant = state_of(request), grant_of(request)
    runtime = state.runtime
    load = await runtime.load()
    adapters = [a for a in await runtime.compatible_adapters() if grant.may_use(a.name)]
    sizes = await runtime.in_pool(lambda: runtime.sizes.of(adapters))
    return JSONResponse(
        {
            "model": state.model_name,
            "uptime_s": round(time.time() - state.started_at, 3),
            "learns": runtime.learning is not None,
            **_load_record(load),
            "adapters": [_size(size) for size in sizes],
        }
    )


def _after(last: str | None, epoch: str) -> int | None:
    """Read `Last-Event-ID`: None has seen nothing, -1 something that is not known here."""
    if last is None:
        return None
    found = _ID.fullmatch(last)
    return int(found[2]) if found and found[1] == epoch else -1


def _frame(event: Event, epoch: str) -> bytes:
    data = {"at": event.at, "adapter": event.adapter, **event.data}
    number = f"id: {epoch}-{event.number}\n" if event.number else ""
    return f"{number}event: {event.kind}\n".encode() + b"data: " + encode(data) + b"\n\n"


def _load_record(load: RuntimeLoad) -> dict[str, Any]:
    return {
        "requests": {
            "open": load.num_requests,
            "running": load.engine.num_running,
            "waiting": load.engine.num_waiting,
        },
        "tokens": {"generated": load.num_tokens, "per_s": round(load.tokens_per_s, 3)},
        "kv": {
            "blocks": load.engine.num_blocks,
            "used_blocks": load.engine.num_blocks - load.engine.num_free_blocks,
            "bytes": load.kv_bytes,
            "used_bytes": load.kv_used_bytes,
        },
        "resident_bytes": load.resident_bytes,
    }


def _size(size: StoredSize) -> dict[str, Any]:
    ratio = size.dense_bytes / max(1, size.stored_bytes)
    return {**asdict(size), "compression": round(ratio, 3)}


ROUTES = (
    Route(method="GET", path="/v1/events", endpoint=events, needs="inference"),
    Route(method="GET", path="/v1/stats", endpoint=stats, needs="admin"),
)
