"""What the routes share, and what they ask of it at the beginning of each request."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request

from hyprstream.errors import InvalidReferenceError
from hyprstream.refs import AdapterRef, RequestId
from hyprstream.runtime import Owner
from hyprstream.runtime.bases import Bases, Serving
from hyprstream.runtime.keys import Grant
from hyprstream.runtime.runtime import Runtime
from hyprstream.runtime.server_config import ServerConfig
from hyprstream.runtime.text_service import Caller
from hyprstream.server.errors import ApiError
from hyprstream.server.live import LiveConfig
from hyprstream.server.metrics import Metrics
from hyprstream.server.schemas.sampling import Adapt

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """What the routes share.

    Attributes:
        runtime: Serves with the first model.
        bases: All models.
        live: Settings.
        metrics: What is counted.
        started_at: Seconds since 1970.
    """

    runtime: Runtime
    bases: Bases
    live: LiveConfig
    metrics: Metrics
    started_at: int

    @property
    def config(self) -> ServerConfig:
        """The settings that hold now."""
        return self.live.current

    @property
    def model_name(self) -> str:
        """What clients call the first model."""
        return self.bases.first_name

    def adapter(self, model: str | None, grant: Grant) -> str | None:
        """Return the reference of the adapter that a name of a model means; see `target`."""
        return self.target(model, grant).adapter

    def target(self, model: str | None, grant: Grant) -> "Target":
        """Return what a name of a model means.

        `None` is the first model. `BASE` is one of the models, `BASE:NAME` an adapter of it;
        `NAME` is an adapter of the first. Adapters are `NAME`, `NAME@VERSION` or `NAME:TAG`.

        Raises:
            ApiError: It is no name, or that of an adapter that the key may not use (404: to
                other callers there is no such adapter).
        """
        if model is None:
            return Target(base=self.bases.first_name, adapter=None)
        base = self.bases.find(model)
        if base is not None:
            return Target(base=base, adapter=None)
        # References have colons themselves: the longest beginning that is a model counts.
        for end in reversed([n for n, letter in enumerate(model) if letter == ":"]):
            base = self.bases.find(model[:end])
            if base is not None:
                return Target(base=base, adapter=str(self.allowed(model[end + 1 :], grant)))
        return Target(base=self.bases.first_name, adapter=str(self.allowed(model, grant)))

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a caller named.

    Attributes:
        base: One of the base models, as clients call it.
        adapter: Reference of an adapter of it; None is the model alone.
    """

    base: str
    adapter: str | None


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
    request: Request,
    prefix: str,
    model: str | None,
    lora: str | None,
    *,
    learn: bool,
    user: str = "",
    adapt: Adapt | None = None,
) -> Caller:
    """Say who asks: the adapter of the path comes before the model of the body."""
    state, grant = state_of(request), grant_of(request)
    target = state.target(model if lora is None else lora, grant)
    if lora is not None and target.adapter is None:
        raise unknown_model(lora)
    return Caller(
        id=new_id(prefix),
        adapter=target.adapter,
        salt=grant.id,
        may_be_learnt=learn,
        owner=Owner(user=user, key=grant.id),
        fit=None if adapt is None else adapt.fit(grant),
    )


@asynccontextmanager
async def serving(request: Request, model: str | None, lora: str | None) -> AsyncIterator[Serving]:
    """Hold the base model that is asked for, loading it if need be.

    Raises:
        ApiError: There is none, or the client went away while it was loaded.
        HyprstreamError: It cannot be loaded.
    """
    state = state_of(request)
    name = state.target(model if lora is None else lora, grant_of(request)).base
    async with AsyncExitStack() as held:
        use = state.bases.use(name)
        if name == state.bases.first_name:
            yield await held.enter_async_context(use)
        else:
            yield await unless_gone(request, held.enter_async_context(use))


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
