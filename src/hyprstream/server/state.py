"""What the routes share, and what they ask of it at the beginning of each request."""

import asyncio
import secrets
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request

from hyprstream.errors import InvalidReferenceError
from hyprstream.refs import AdapterRef, ModelRef, RequestId
from hyprstream.runtime.keys import Grant
from hyprstream.runtime.runtime import Runtime
from hyprstream.runtime.server_config import ServerConfig
from hyprstream.runtime.text_service import Caller
from hyprstream.server.errors import ApiError
from hyprstream.server.metrics import Metrics

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """What the routes share.

    Attributes:
        runtime: Serves.
        config: Bounds.
        metrics: What is counted.
        started_at: Seconds since 1970.
    """

    runtime: Runtime
    config: ServerConfig
    metrics: Metrics
    started_at: int

    @property
    def model_name(self) -> str:
        """What clients call the base model."""
        return self.config.model_name or served_name(self.runtime.model.ref)

    def adapter(self, model: str | None, grant: Grant) -> str | None:
        """Return the reference of the adapter that a name of a model means.

        `None` and the names of the base model mean the base model alone; `NAME`, `NAME@VERSION`,
        `NAME:TAG` and any of them after `BASE:` mean an adapter.

        Raises:
            ApiError: It is no name, or that of an adapter that the key may not use (404: to
                other callers there is no such adapter).
        """
        names = self._base_names
        if model is None or model in names:
            return None
        for prefix in names:
            if model.startswith(f"{prefix}:"):
                model = model.removeprefix(f"{prefix}:")
                break
        return str(self.allowed(model, grant))

    def allowed(self, adapter: str, grant: Grant) -> AdapterRef:
        """Read the reference of an adapter that the key may use.

        Raises:
            ApiError: There is no such adapter, for this key.
        """
        try:
            ref = AdapterRef.parse(adapter)
        except InvalidReferenceError:
            raise unknown_model(adapter) from None
        if not grant.may_use(ref.name):
            raise unknown_model(adapter)
        return ref

    @property
    def _base_names(self) -> tuple[str, ...]:
        """What the base model may be called: a path is no name for strangers."""
        ref = self.runtime.model.ref
        return (self.model_name,) if ModelRef.parse(ref).is_path else (self.model_name, ref)


def served_name(ref: str) -> str:
    """Return the last part of a reference, without the suffix of a file."""
    parsed = ModelRef.parse(ref)
    last = parsed.name.rstrip("/").rpartition("/")[2]
    return last.removesuffix(".gguf").removesuffix(".safetensors") or "model"


def unknown_model(name: str) -> ApiError:
    """Say that there is no such model."""
    return ApiError(
        404,
        f"there is no model {name[:200]!a}: GET /v1/models lists those that there are",
        code="model_not_found",
        param="model",
    )


def state_of(request: Request) -> ServerState:
    """Return what the routes share."""
    state: ServerState = request.app.state.server
    return state


def grant_of(request: Request) -> Grant:
    """Return what the caller may do."""
    grant: Grant = request.state.grant
    return grant


def new_id(prefix: str) -> RequestId:
    """Make the id of an answer, as `chatcmpl-...`."""
    return RequestId(f"{prefix}{secrets.token_hex(12)}")


def caller_of(
    request: Request, prefix: str, model: str | None, lora: str | None, *, learn: bool
) -> Caller:
    """Say who asks: the adapter of the path comes before the model of the body."""
    state, grant = state_of(request), grant_of(request)
    adapter = state.adapter(model, grant) if lora is None else str(state.allowed(lora, grant))
    return Caller(id=new_id(prefix), adapter=adapter, salt=grant.id, may_be_learnt=learn)


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Do work that ends when the client goes away.

    Raises:
        ApiError: The client went away; nobody will read it.
    """
    doing = asyncio.ensure_future(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait([doing, gone], return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ApiError(499, "the client went away", code="client_closed_request")
        return doing.result()
    finally:
        for task in (doing, gone):
            task.cancel()
        await asyncio.gather(doing, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
